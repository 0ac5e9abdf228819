"""``bk.explain`` refuses bad input in words: before any forward where that is possible."""

import copy

import pytest
import torch
from test_explain import example, made
from torch import nn

import bcos_kernels as bk


def no_forward(module, args):
    raise AssertionError("a forward was run")


BCOS = made("bcos")
X = example("bcos")
PARAMETER = nn.Parameter(torch.ones(3, 5))


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m: bk.explain(m.forward, X), TypeError, "a torch.nn.Module is needed, not method"),
        (lambda m: bk.explain(nn.Linear(2, 3), X), ValueError, "Linear has no B-cos layers"),
        (lambda m: bk.explain(m.train(), X), ValueError, r"it is in training mode: call model.eval\(\) first"),
        (lambda m: bk.explain((m[1].train(), m)[1], X), ValueError, "its module '1' is in training mode"),
        (lambda m: bk.explain(m, X.numpy()), TypeError, "images=ndarray: a tensor"),
        (lambda m: bk.explain(m, X.long()), TypeError, "images has dtype torch.int64"),
        (lambda m: bk.explain(m, X[0, 0, 0]), ValueError, r"images has shape \(8,\)"),
        (lambda m: bk.explain(m, X[0]), ValueError, r"images has shape \(6, 9, 8\): one image .* images\[None\]"),
        (lambda m: bk.explain(m, X[0, :3]), ValueError, r"images has shape \(3, 9, 8\): one image"),
        (lambda m: bk.explain(m, X[:0]), ValueError, r"images has shape \(0, 6, 9, 8\)"),
        (lambda m: bk.explain(m, X, chunk=0), ValueError, "chunk=0: must be at least 1"),
        (lambda m: bk.explain(m, X, chunk=True), TypeError, "chunk=True: an int"),
        (lambda m: bk.explain(m, X, create_graph=None), TypeError, "create_graph=None: True or False is needed"),
        (lambda m: bk.explain(m, X, weights="map"), TypeError, "weights='map': True or False is needed"),
        (lambda m: bk.explain(m, X, output="7"), ValueError, "output='7': the model has no module"),
        (lambda m: bk.explain(m, X, output=7), TypeError, "output=7: the name of a module"),
        (lambda m: bk.explain(m, X, -1), ValueError, "targets: class -1 is below 0"),
        (lambda m: bk.explain(m, X, [0, 1]), ValueError, r"targets has shape \(2,\): for 3 images"),
        (lambda m: bk.explain(m, X, True), TypeError, "targets has dtype torch.bool"),
        (lambda m: bk.explain(m, X, "best"), ValueError, "targets='best': allowed are None"),
        (lambda m: bk.explain(m, X, "top0"), ValueError, "targets='top0'"),
        (lambda m: bk.explain(m, X, []), ValueError, r"targets=\[\]: at least one row is needed"),
        (lambda m: bk.explain(m, X, [(0, 1, 2)]), TypeError, "gives pairs"),
        (lambda m: bk.explain(m, X, [(3, 1)]), ValueError, "image 3 of the pair"),
        (lambda m: bk.explain(m, X, [(0, -1)]), ValueError, r"class -1 of the pair \(0, -1\)"),
        (lambda m: bk.explain(m, X, object()), TypeError, "targets=<object"),
        (lambda m: bk.explain(m, X, torch.ones(4)), ValueError, r"directions have shape \(4,\)"),
    ],
)
def test_bad_input_is_told_before_any_forward(call, error, words):
    model = copy.deepcopy(BCOS)
    model.register_forward_pre_hook(no_forward)
    with pytest.raises(error, match=words):
        call(model)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m: bk.explain(m, X[:, :3]), ValueError, r"images has shape \(3, 3, 9, 8\).* takes 6 .* AddInverse"),
        (lambda m: bk.explain(m, X, 5), ValueError, "class 5 is out of range, the model has 5 classes"),
        (lambda m: bk.explain(m, X, [(0, 5)]), ValueError, "class 5 is out of range"),
        (lambda m: bk.explain(m, X, "top6"), ValueError, "targets='top6': the model has 5 classes"),
        (lambda m: bk.explain(m, X, torch.ones(2, 4)), ValueError, r"directions of shape \(2, 4\) .* K=5"),
        (lambda m: bk.explain(m, X, output=lambda m, x: [m(x)]), TypeError, "returns list, not a tensor"),
        (lambda m: bk.explain(m, X, output=lambda m, x: m(x)[:, 0]), ValueError, r"output has shape \(3,\)"),
        (lambda m: bk.explain(m, X, output=lambda m, x: m(x).detach()), ValueError, "has no graph"),
        (lambda m: bk.explain(m, X, output=lambda m, x: m(x.detach())), ValueError, "does not depend on the images"),
        (lambda m: bk.explain(m, X, output=lambda m, x: PARAMETER), ValueError, "does not depend on the images"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_input_that_the_forward_shows(call, error, words):
    with pytest.raises(error, match=words):
        call(copy.deepcopy(BCOS))


def test_other_errors_of_a_model_are_its_own():
    with pytest.raises(RuntimeError, match="5 channels"):
        bk.explain(BCOS, X[:, :5])
    unused = nn.Sequential(copy.deepcopy(BCOS)).eval()
    unused.beside = nn.Identity().eval()
    unused.forward = lambda x: BCOS(x)
    with pytest.raises(ValueError, match="output='beside': the model does not call this module"):
        bk.explain(unused, X, output="beside")


def shard(module):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=torch.distributed.init_device_mesh("cpu", (1,)))


def sharded(model):
    shard(model[0])
    return model


def static(model):
    return nn.parallel.DistributedDataParallel(model, static_graph=True)


WRAPPERS = {"FSDP": sharded, r"DistributedDataParallel\(static_graph=True\)": static}


@pytest.mark.parametrize("words", WRAPPERS)
def test_wrappers_that_lose_gradients_of_a_second_backward(words, one_process):
    model = WRAPPERS[words](copy.deepcopy(BCOS)).eval()
    assert bk.explain(model, X).weights.isfinite().all()
    model.register_forward_pre_hook(no_forward)
    with pytest.raises(ValueError, match=f"create_graph=True: .* wrapped by {words}, .* wrap a module whose forward"):
        bk.explain(model, X, create_graph=True)


class Loss(nn.Module):
    """The module that the error and the documentation tell to wrap."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return bk.explain(self.model, images, 0, create_graph=True).contributions.clamp(min=0).sum()


def test_a_module_that_forms_the_explanation_in_its_own_forward_is_sharded(one_process):
    plain, whole = Loss(copy.deepcopy(BCOS)), Loss(copy.deepcopy(BCOS))
    shard(whole)
    for module in (plain, whole):
        module(X).backward()
    parameters = whole.parameters(), plain.parameters()
    trained = [(mine, yours) for mine, yours in zip(*parameters, strict=True) if yours.grad is not None]
    assert trained
    for mine, yours in trained:
        assert torch.equal(mine.grad.full_tensor(), yours.grad)
