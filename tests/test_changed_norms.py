"""A norm that is changed after it was accelerated computes what its own forward computes, and the report says why."""

import warnings
from functools import partial

import norm_families
import pytest
import torch
import torch.nn.functional as F
from families import plain
from norm_families import BATCH, MAKERS, N, accelerated, counted, example, norm, same_as_its_own
from publishing import explain, outcome, same_or_raised
from torch import nn
from torch.nn.utils import parametrize

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules

_published = pytest.fixture(autouse=True)(lambda monkeypatch: norm_families.publish(monkeypatch))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "name, owner, attribute",
    [
        (BATCH, N.BatchNormUncentered2d, "forward"),
        (BATCH, N.uncentered_norms.batchnorm_uncentered, "batch_norm_uncentered_2d"),
        ("AllNormUncentered2d", nn.BatchNorm2d, "_check_input_dim"),
        ("GroupNormUncentered2d", N.uncentered_norms.groupnorm_uncentered, "group_norm_uncentered"),
        ("GNInstanceNormUncentered2d, no bias", N.GroupNormUncentered2d, "forward"),
        ("DetachableLayerNorm", F, "layer_norm"),
        ("PositionNormUncentered2d", torch, "var"),
        ("late batch", norm_families.DynamicMultiplication, "forward"),
        ("late batch", norm_families.InModeError, "__call__"),
    ],
)
def test_code_replaced_on_a_class_or_in_a_module(name, owner, attribute, when, monkeypatch):
    module, x, original = norm(name), example(name), getattr(owner, attribute)
    if when == "after":
        bk.accelerate(module)
        assert bk.report(module).norms[0].backend is not None

    def doubled(*args, **options):
        found = original(*args, **options)
        return found if found is None else 2 * found

    monkeypatch.setattr(owner, attribute, doubled, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bk.accelerate(module)
    assert bk.report(module).norms[0].backend is None
    same_as_its_own(module, x, None)
    monkeypatch.undo()
    norm_families.publish(monkeypatch)
    if when == "after":
        assert bk.report(module).norms[0].backend is not None


def other_check(module):
    module._check_input_dim = lambda x: None


def hook_on_the_mode(module):
    module.dynamic_multiplication.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("AllNormUncentered2d", other_check, "its _check_input_dim was assigned on the instance"),
        ("late batch", hook_on_the_mode, "its .dynamic_multiplication has a hook"),
        ("late batch", lambda m: setattr(m.dynamic_multiplication, "state", []), "has no state with the key"),
        ("late batch", lambda m: setattr(m.dynamic_multiplication, "forward", lambda **_: 0 * m.weight), "assigned"),
        ("late batch", lambda m: delattr(m, "dynamic_multiplication"), "it has lost its dynamic_multiplication"),
        (
            BATCH,
            lambda m: parametrize.register_parametrization(m, "weight", nn.Identity()),
            "its weight is parametrized: in training every read may change it",
        ),
        (BATCH, lambda m: setattr(m, "eps", -1.0), None),
        (BATCH, lambda m: setattr(m, "eps", 2), None),
        (BATCH, lambda m: setattr(m, "momentum", 0.7), None),
        (BATCH, lambda m: setattr(m, "momentum", None), None),
        (BATCH, lambda m: setattr(m, "weight", None), None),
        (BATCH, lambda m: setattr(m, "weight", nn.Parameter(torch.ones(1).double())), None),
        (BATCH, lambda m: setattr(m, "bias", nn.Parameter(torch.ones(3, 1, 1).double())), None),
        ("GroupNormUncentered2d", lambda m: setattr(m, "num_groups", 3), None),
        ("GroupNormUncentered2d", lambda m: setattr(m, "num_groups", 4), None),
        ("DetachableLayerNorm", lambda m: setattr(m, "normalized_shape", (5, 6)), None),
        ("PositionNormUncentered2d", lambda m: setattr(m, "normalized_shape", (3,)), None),
    ],
)
def test_an_instance_changed_afterwards(name, change, message):
    module = accelerated(norm(name), "reference")
    change(module)
    for on in (False, True):
        if hasattr(module, "detach"):
            module.detach = on
        x = example(name)
        if message is not None:
            same_as_its_own(module, x, message)
            continue
        other = plain(module)
        for _ in range(2):
            agree = partial(torch.allclose, rtol=1e-12, equal_nan=True)
            same_or_raised(partial(module, x), partial(other, x), agree)
        for mine, yours in zip(module.buffers(), other.buffers(), strict=True):
            assert torch.allclose(mine, yours, rtol=1e-12)


def test_a_global_hook_sees_the_mode_of_a_norm():
    module, seen = accelerated(norm("late batch")), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(type(m)))
    try:
        module(example("late batch"))
    finally:
        handle.remove()
    assert norm_families.InModeError in seen


BUFFERS = {
    "no running variance": lambda m: setattr(m, "running_var", None),
    "no running mean": lambda m: setattr(m, "running_mean", None),
    "neither": lambda m: (setattr(m, "running_var", None), setattr(m, "running_mean", None)),
    "no count": lambda m: setattr(m, "num_batches_tracked", None),
    "not tracked any more": lambda m: setattr(m, "track_running_stats", False),
    "deleted": lambda m: delattr(m, "running_var"),
    "another tensor": lambda m: setattr(m, "running_var", torch.full((6,), 3.0, dtype=torch.float64)),
    "single precision": lambda m: setattr(m, "running_var", m.running_var.float()),
    "on another device": lambda m: setattr(m, "running_var", m.running_var.to("meta")),
    "one value": lambda m: setattr(m, "running_var", torch.ones(1, dtype=torch.float64)),
    "a parameter": lambda m: (delattr(m, "running_var"), setattr(m, "running_var", nn.Parameter(m.weight.detach()))),
}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("change", BUFFERS)
@pytest.mark.parametrize("name", [BATCH, "late batch", "minimal batch"])
def test_running_buffers_removed_or_replaced(name, change, momentum):
    """In training and evaluation the norm behaves as its own code does, errors included."""
    theirs = norm(name)
    ours = accelerated(theirs)
    for module in (ours, theirs):
        module.momentum = momentum
        BUFFERS[change](module)
    for training in (True, False, True):
        mine, yours = (partial(outcome, m.train(training), example(name), second=False) for m in (ours, theirs))
        same_or_raised(mine, yours)


class Own(torch.Tensor):
    """A tensor of a class of its own, as the libraries of images and of units have."""


def alike(y, expected):
    assert (type(y), y.dtype, y.shape) == (type(expected), expected.dtype, expected.shape)
    y, expected = (t.to_dense() if t.is_sparse else t for t in (y, expected))
    return torch.allclose(y, expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", MAKERS)
def test_inputs_that_the_code_does_not_expect(name):
    """Other ranks and channels, integers, complex numbers, no batch: what its own forward does, errors included."""
    theirs = norm(name).eval()
    tall = example(name)
    inputs = [torch.ones(6, dtype=torch.float64), tall[0], tall[None], tall[:0], tall[:, :4], tall.to(torch.complex128)]
    inputs += [tall.long(), tall[..., None], torch.ones((), dtype=torch.float64), tall.to_sparse(), tall.float()]
    inputs.append(tall.as_subclass(Own))
    for mode in (False, True):
        ours = accelerated(theirs)
        for module in (ours, theirs):
            explain(module, mode)
        for x in inputs:
            same_or_raised(partial(ours, x), partial(theirs, x), alike)


@pytest.mark.slow
def test_compilers_and_transforms_see_the_norms_own_operators():
    """They fuse them, export them or differentiate them; this is no reason to report."""
    module, x = accelerated(norm("BatchNormUncentered2d, no bias", torch.float32).eval()), example(BATCH).float()
    expected = module(x)
    torch._dynamo.reset()

    def run():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        exported = torch.export.export(module, (x,))
        assert not any("bcos_kernels" in str(node.target) for node in exported.graph.nodes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, x, check_trace=False)
        assert not any("bcos_kernels" in node.kind() for node in traced.inlined_graph.nodes())
        for program in (compiled, exported.module(), traced):
            assert torch.allclose(program(x), expected, rtol=1e-5)
        assert torch.allclose(torch.func.vmap(module)(x[:, None])[:, 0], expected, rtol=1e-5)
        _, tangent = torch.func.jvp(module, (x,), (x,))
        assert torch.allclose(tangent, plain(module)(x) - module.bias if module.bias is not None else tangent)

    assert not counted(run)


@pytest.mark.slow
def test_a_network_with_norms_compiles_as_one_graph():
    model = bk.accelerate(
        nn.Sequential(M.BcosConv2d(6, 8, 3), N.BatchNormUncentered2d(8), norm_families.LateBatch(8))
    ).eval()
    x = example(BATCH).float()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x), rtol=1e-5, atol=1e-6)
