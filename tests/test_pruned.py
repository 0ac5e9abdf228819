"""Linear parts whose weight a hook of PyTorch's sets before each call: pruning, and the old norms of weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules

LAYERS = {
    "convolution": (lambda package: package.BcosConv2d(6, 8, 3, padding=1, b=1.5), (2, 6, 5, 4)),
    "MaxOut": (lambda package: package.BcosConv2d(6, 4, 3, stride=2, max_out=2), (2, 6, 5, 4)),
    "linear": (lambda package: package.BcosLinear(6, 8), (3, 6)),
}


def trio(name):
    """The reference's layer, a copy of it that is accelerated, and ours, with the same weights; and an input."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    theirs, ours = make(M).double(), make(bk).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, bk.accelerate(copy.deepcopy(theirs)), ours, torch.randn(shape, dtype=torch.float64)


def results(layer, x):
    """The output, and the gradients at the input and at the parameters, which have none afterwards."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return found


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_pruned_filter_gives_zeros(name, called_before):
    """Those of the reference are NaN; the outputs of its other filters are the same."""
    theirs, *layers, x = trio(name)
    for layer in (theirs, *layers):
        if called_before:
            layer(x), layer(x)
        prune.ln_structured(layer.linear, "weight", 0.25, n=2, dim=0)
    expected, dim = theirs(x), 1 if x.dim() == 4 else -1
    empty = expected.isnan().movedim(dim, 0).flatten(1).any(1)
    assert 0 < empty.sum() < len(empty)
    for layer in layers:
        for _ in range(2):
            y, *gradients = results(layer, x)
            assert torch.allclose(y.movedim(dim, 0)[~empty], expected.movedim(dim, 0)[~empty], rtol=1e-12)
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert y.isfinite().all() and (name == "MaxOut" or (y.movedim(dim, 0)[empty] == 0).all())
        assert bk.report(layer).accelerated == 1


def _weight_norm(linear):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(linear)


SETTERS = {
    "pruning": lambda linear: prune.l1_unstructured(linear, "weight", 0.3),
    "pruned twice": lambda linear: [prune.l1_unstructured(linear, "weight", share) for share in (0.2, 0.3)],
    "weight norm": _weight_norm,
    "spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("how", SETTERS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_hook_runs_once_in_every_call(name, how, train):
    """In training each call moves a spectral norm by one step, and each step of the optimiser moves the weight."""
    *layers, x = trio(name)
    found = []
    for layer in layers:
        torch.manual_seed(1)
        SETTERS[how](layer.linear)
        layer.train(train)
        optimizer, steps = torch.optim.SGD(layer.parameters(), 0.1), []
        for _ in range(3):
            steps += results(layer, x)
            layer(x).square().sum().backward()
            optimizer.step()
        found.append([*steps, *layer.state_dict().values()])
    for expected, *others in zip(*found, strict=True):
        for other in others:
            assert (other - expected).norm() <= 1e-12 * max(1, expected.norm())
    assert [bk.report(layer).accelerated for layer in layers[1:]] == [1, 1]


@pytest.mark.parametrize("index", [1, 2])
def test_a_hook_that_sees_the_call_beside_one_that_sets_the_weight(index):
    """It is called, and the hook that sets the weight still runs once in every call."""
    theirs, *layers, x = trio("linear")
    layer, seen = (theirs, *layers)[index], []
    for one in (theirs, layer):
        torch.manual_seed(1)
        nn.utils.spectral_norm(one.linear)
    layer.linear.register_forward_pre_hook(lambda part, args: seen.append(part))
    for calls in (1, 2):
        assert torch.allclose(layer(x), theirs(x), rtol=1e-12)
        assert len(seen) == calls
    assert bk.report(layer).rows[0].reason == "its .linear has a hook"


def test_a_graph_of_a_pruned_layer():
    """``torch.compile`` takes it whole."""
    _, *layers, x = trio("convolution")
    for layer in layers:
        prune.ln_structured(layer.linear, "weight", 0.25, n=2, dim=0)
        expected = results(layer, x)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for mine, its in zip(results(compiled, x), expected, strict=True):
            assert torch.allclose(mine, its, rtol=1e-12)
