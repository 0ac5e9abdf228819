"""Norms: copies, pickles and distribution of accelerated ones, what is left alone, and what is counted and told."""

import copy
import io
import pickle
import warnings
from collections import Counter

import norm_families
import pytest
import torch
from families import is_accelerated, net, reason
from norm_families import BATCH, N, accelerated, counted, example, norm, same_as_its_own
from publishing import explain, outcome
from torch import nn
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk
from bcos_kernels import tally
from bcos_kernels.adopt import accelerate_as_built
from bcos_kernels.compat import import_reference
from bcos_kernels.core import extension
from bcos_kernels.norm import NORM

M = import_reference().modules

_published = pytest.fixture(autouse=True)(lambda monkeypatch: norm_families.publish(monkeypatch))


@pytest.mark.parametrize("name", [BATCH, "DetachableGroupNorm2d", "late batch", "late layer"])
def test_copies_pickles_and_checkpoints_of_norms(name):
    module = norm(name)
    vars(module).pop("_get_name", None)
    bk.accelerate(module)
    x = example(name)
    buffer = io.BytesIO()
    torch.save(nn.Sequential(module), buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), *(pickle.loads(pickle.dumps(module, p)) for p in (2, 5))]
    copies += [torch.load(buffer, weights_only=False)[0]]
    expected = outcome(copy.deepcopy(module), x, True, True)
    for other in copies:
        assert is_accelerated(other) and type(other) is type(module)
        for key, value in outcome(other, x, True, True).items():
            assert torch.equal(value, expected[key]), key
        assert type(bk.restore(other)) is type(norm(name))
    fresh = norm(name)
    fresh.load_state_dict(module.state_dict())
    assert list(fresh.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("name", [BATCH, "late layer", "DetachablePositionNorm2d"])
def test_data_parallel_replica_of_a_norm(name):
    """A replica as nn.DataParallel makes it: parameters and buffers are plain tensors."""
    module = accelerated(norm(name).eval())
    explain(module, True)
    replica = module._replicate_for_data_parallel()
    for key in list(replica._buffers):
        setattr(replica, key, module._buffers[key])
    for key, parameter in module._parameters.items():
        vars(replica)[key] = parameter * 1
    assert is_accelerated(replica)
    assert torch.equal(replica(example(name)), module(example(name)))


def test_norms_in_distributed_data_parallel(one_process):
    theirs = norm(BATCH)
    ours = accelerated(theirs)
    wrapped = nn.parallel.DistributedDataParallel(ours)
    wrapped(example(BATCH)).square().sum().backward()
    theirs(example(BATCH)).square().sum().backward()
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-10)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=1e-10)


class LazyNorm(nn.LazyBatchNorm2d):
    cls_to_become = None

    def __init__(self):
        super().__init__()
        self.detach = False


TWO = nn.Sequential(N.GNLayerNormUncentered2d(6), nn.ReLU())


class OwnVariance(N.BatchNormUncentered2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(norm(BATCH)), "it is torch's SyncBatchNorm, a centered norm"),
        (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(bk.accelerate(norm(BATCH))), "it is torch's SyncBatchNorm"),
        (LazyNorm, "its weight is not initialised yet"),
        (lambda: torch.jit.script(norm(BATCH)), "it is a compiled TorchScript module"),
        (
            lambda: torch.jit.trace(TWO, torch.ones(1, 6, 2, 2)),
            "it is a compiled TorchScript module",
        ),
        (lambda: OwnVariance(6), "the code of OwnVariance.forward is not among the published norms"),
        (lambda: norm_families.Failing(6), "its published code fails at every call: it normalizes a function"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_norms_left_alone_with_the_reason(make, message):
    module = make()
    kind = type(module)
    bk.accelerate(module)
    assert type(module) is kind
    assert message in reason(module)


def test_plain_norms_are_nobodys():
    """PyTorch's own, and the centered ones of ``bcos`` that add nothing to them, which have no explanation mode."""
    model = nn.Sequential(M.BcosConv2d(6, 6, 1), N.BatchNorm2d(6), N.AllNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(4))
    kinds = [type(m) for m in model]
    bk.accelerate(model)
    assert [type(m) for m in model][1:] == kinds[1:] and not bk.report(model).norms


def test_where_no_kernel_serves_a_norm_its_own_forward_runs(monkeypatch):
    """The formula in plain PyTorch would be no faster; where it was asked for by name it serves."""
    monkeypatch.setattr(extension, "DTYPES", (torch.float32,))
    module = accelerated(norm(BATCH, torch.float16))
    x = example(BATCH, dtype=torch.float16)[:, :, :3]  # of a size whose plan no other test has made
    told = counted(lambda: module(x))
    (key,) = told
    assert key[:2] == ("ran plain", BATCH) and key[2].startswith("no kernel serves it: cpu: dtype torch.float16")
    assert reason(module).startswith("no kernel serves it")
    assert counted(lambda: accelerated(module, "reference")(x)) == Counter()
    with pytest.raises(ValueError, match="backend='cpu' cannot serve this call"):
        accelerated(module, "cpu")(x)


def test_a_backend_without_norms_leaves_them_alone(monkeypatch):
    monkeypatch.setattr(NORM, "backends", {k: v for k, v in NORM.backends.items() if k != "cpu"})
    module = accelerated(norm(BATCH), "cpu")
    same_as_its_own(module, example(BATCH), "the backend 'cpu' has no norms")


def test_norms_are_counted_apart_from_layers():
    def build():
        with accelerate_as_built():
            model = nn.Sequential(net(), N.BatchNormUncentered2d(6), OwnVariance(6))
            model[1](torch.ones(2, 6, 3, 3))

    told = counted(build)
    reason = "the code of OwnVariance.forward is not among the published norms"
    assert told == Counter({
        ("accelerated", "", ""): 3, ("accelerated", "norm", ""): 1, ("fused", "", ""): 1,
        ("left alone, a norm", "OwnVariance", reason): 1,
    })  # fmt: skip
    assert tally.words([told]).splitlines() == [
        "bcos_kernels: 3 B-cos layers accelerated, 1 fused call",
        "  1 norm accelerated",
        f"  left alone: 1 norm of OwnVariance: {reason}",
    ]
    assert tally.words([told, told]).splitlines()[1] == "  2 norms accelerated in 2 processes"


def test_the_warning_for_a_model_without_layers_stays():
    with pytest.warns(UserWarning, match="1 norm is accelerated, but no B-cos layer: it has no B-cos layers"):
        bk.accelerate(nn.Sequential(N.BatchNormUncentered2d(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bk.accelerate(N.BatchNormUncentered2d(4))


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("name", [BATCH, "late batch"])
def test_a_checkpoint_that_ends_with_a_norm_updates_it_as_often_as_its_own_forward(name, momentum):
    """The second forward ends with the last tensor that the backward needs, which published norms form after that."""
    module = norm(name)
    module.momentum = momentum
    for each in (module, fused := accelerated(module)):
        x = example(name).requires_grad_()
        checkpoint(each, x, use_reentrant=False).pow(3).sum().backward()
    for mine, yours in zip(fused.buffers(), module.buffers(), strict=True):
        assert torch.allclose(mine, yours, rtol=1e-12)
    assert int(fused.num_batches_tracked) == int(norm(name).num_batches_tracked) + 2


def test_norms_run_their_running_statistics_without_gradients():
    module = accelerated(norm(BATCH))
    with torch.inference_mode():
        module(example(BATCH))
    with torch.no_grad():
        y = module(example(BATCH))
    assert not y.requires_grad and int(module.num_batches_tracked) == int(norm(BATCH).num_batches_tracked) + 2
