"""Layers whose weight is parametrized, so that each read computes it, and in training may change what it is made of."""

import copy

import pytest
import torch
from families import X, example
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import register_parametrization

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("apart", [False, True])
def test_an_accelerated_layer(training, apart):
    """Spectral norm takes a step of its power iteration whenever the weight is read in training: bcos does twice.

    Its own training flag decides, which may be another than that of the layer.
    """
    layer = M.BcosConv2d(6, 4, 3).double().train(training)
    spectral_norm(layer.linear)
    if apart:
        layer.train(not training)
        layer.linear.parametrizations.train(training)
    theirs = copy.deepcopy(layer)
    bk.accelerate(layer)
    for _ in range(3):
        assert torch.allclose(layer(X), theirs(X), rtol=1e-12)
        assert bk.report(layer).accelerated == (not training)
    for ours, reference in zip(layer.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-12)


class Noted(nn.Module):
    """A parametrization that changes nothing and counts."""

    count = 0

    def forward(self, weight):
        self.count += 1
        return weight


@pytest.mark.parametrize("make", [lambda: M.BcosConv2d(6, 4, 3), lambda: M.BcosLinear(6, 4)])
def test_an_accelerated_layer_computes_its_weight_as_often_as_before(make):
    layer, noted, counts = make().double(), Noted(), []
    register_parametrization(layer.eval().linear, "weight", noted)
    for accelerated in (False, True):
        if accelerated:
            bk.accelerate(layer)
            layer(example(layer))
        noted.count = 0
        layer(example(layer))
        counts.append(noted.count)
    assert bk.report(layer).accelerated == 1 and counts == [2, 2]


def test_a_layer_of_this_package_reads_its_weight_once():
    """The reference divides one read by the norm of the next: between the two, spectral norm takes another step."""
    torch.manual_seed(0)
    theirs, ours = (kind(6, 4, 3).double() for kind in (M.BcosConv2d, bk.BcosConv2d))
    for layer in (theirs, ours):
        spectral_norm(layer.linear, n_power_iterations=1)
    ours.load_state_dict(theirs.state_dict())
    assert torch.allclose(ours.eval()(X), theirs.eval()(X), rtol=1e-12)
    lengths, unit = [], ours(X)
    for _ in range(2):
        assert torch.allclose(ours.train()(X), unit, rtol=1e-12)
        lengths.append(ours.eval().linear.weight.norm())
    y = theirs.train()(X)  # at b = 2, y is quadratic in the length of the filters
    assert torch.allclose(y, unit * (lengths[0] / lengths[1]) ** 2, rtol=1e-12) and not torch.allclose(y, unit)
    for mine, its in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(mine, its, rtol=1e-12)
