"""Calls of this package's layers in which all reads as before: whatever changes between two is noticed."""

import pytest
import torch
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.core import dispatch, plans
from bcos_kernels.transform import repeated

X = torch.randn(2, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = X[..., 0, 0].contiguous()

pytestmark = pytest.mark.skipif(repeated._C is None, reason="the extension reads the layers")


@pytest.fixture
def layer():
    """A layer that was called before, and whose next call repeats that one."""
    torch.manual_seed(0)
    made = bk.BcosConv2d(6, 4, 3, b=1.5).double()
    made(X)
    assert repeats(made)
    return made


def repeats(layer, x=X):
    return isinstance(repeated.repeated(layer, x), Tensor)


def same(layer, x=X):
    """y, which must be what the layer computes where it is read in Python."""
    y = layer(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "_C", None)
        assert torch.equal(y, layer(x))
    return y


def other_weight(layer):
    layer.linear.weight = nn.Parameter(torch.randn(4, 6, 1, 1).double())


@pytest.mark.parametrize(
    "change, still_repeats",
    [
        (lambda m: setattr(m, "b", 2), True),
        (lambda m: setattr(m, "b", torch.tensor(1.25).double()), False),
        (lambda m: setattr(m, "b", nn.Parameter(torch.tensor(1.25).double())), False),
        (lambda m: m.linear.weight.data.neg_(), True),
        (other_weight, True),
        (lambda m: setattr(m.linear, "bias", nn.Parameter(torch.randn(4).double())), True),
        (lambda m: setattr(m.linear, "stride", (2, 2)), True),
        (lambda m: setattr(m.linear, "padding", (1, 1)), True),
        (lambda m: setattr(m.linear, "padding", [1, 1]), False),
        (lambda m: (setattr(m.linear, "padding", (1, 1)), setattr(m.linear, "padding_mode", "reflect")), False),
        (lambda m: setattr(m, "max_out", 2), True),
        (lambda m: setattr(m, "normalize_weights", False), True),
        (lambda m: setattr(m, "norm_eps", (1.0, 0.0)), True),
        (lambda m: setattr(m, "b_rule", "offset"), False),
        (lambda m: setattr(m, "backend", "reference"), False),
        (lambda m: setattr(m, "detach", torch.tensor(True)), False),
        (lambda m: m.linear.register_forward_hook(lambda *args: 2 * args[2]), False),
        (lambda m: m.linear.register_forward_pre_hook(lambda module, args: (2 * args[0],)), False),
        (lambda m: m.linear.register_full_backward_hook(lambda *_: None), False),
        (lambda m: setattr(m.linear, "forward", lambda x: 2 * x[:, :4, 1:-1, 1:-1]), False),
        (lambda m: setattr(m, "calc_patch_norms", lambda x: x.new_ones(1)), False),
        (lambda m: nn.utils.parametrize.register_parametrization(m.linear, "weight", nn.Tanh()), False),
        (lambda m: nn.utils.parametrizations.weight_norm(m.linear), False),
        (lambda m: vars(m).update(linear=nn.Conv2d(6, 4, 3, bias=False).double()), False),
        (lambda m: setattr(m, "linear", nn.Conv2d(6, 4, 3, bias=False).double()), True),
    ],
)
def test_a_change_between_two_calls(layer, change, still_repeats):
    before = layer(X)
    change(layer)
    y = same(layer)
    assert y.shape != before.shape or not torch.equal(y, before) or not still_repeats
    assert repeats(layer) == still_repeats
    same(layer)


def test_a_mode_that_is_a_tensor(layer):
    layer.detach = torch.tensor(True)
    for _ in range(2):
        x = X.clone().requires_grad_()
        frozen = torch.autograd.grad(same(layer, x).sum(), x)[0]
    layer.detach.fill_(False)
    assert not torch.equal(torch.autograd.grad(same(layer, x).sum(), x)[0], frozen)


@pytest.mark.parametrize("name, value", [("norm_eps", (1.0, 0.0)), ("b_rule", "offset")])
def test_a_change_of_the_class(layer, monkeypatch, name, value):
    before = layer(X)
    monkeypatch.setattr(bk.BcosConv2d, name, value)
    assert not torch.equal(same(layer), before)
    assert repeats(layer) == (name == "norm_eps")


def test_a_method_of_a_class(layer, monkeypatch):
    before = layer(X)
    monkeypatch.setattr(bk.BcosConv2d, "calc_patch_norms", lambda self, x: x.new_ones(1))
    assert not torch.equal(same(layer), before)


def test_an_attribute_that_is_only_its_classs(layer, monkeypatch):
    del layer.b
    for b in (2, 3):
        monkeypatch.setattr(bk.BcosConv2d, "b", b, raising=False)
        same(layer)
        assert not repeats(layer)


@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: bk.BcosLinear(6, 4), ROWS),
        (lambda: bk.BcosConv2dWithScale(6, 4, 3, scale=3.0), X),
        (lambda: bk.BcosConv2d(6, 4, 3, groups=2, max_out=2), X),
        (lambda: bk.BcosConv3d(6, 4, 1), X[:, :, None]),
    ],
)
def test_explanation_modes_and_gradients(make, x):
    layer = make().double()
    for mode in (True, False, True, False):
        layer.set_explanation_mode(mode)
        found = []
        for extension in (repeated._C, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(repeated, "_C", extension)
                inputs = x.clone().requires_grad_()
                y = layer(inputs)
                found.append((y, *torch.autograd.grad(y.square().sum(), (inputs, layer.weight))))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert repeats(layer, x)


def test_inputs_of_other_kinds_and_modes(layer):
    assert repeats(layer, X[:1]) is False and torch.equal(layer(X[:1]), layer(X)[:1]) and repeats(layer, X[:1])
    assert not repeats(layer, X[0])
    torch.testing.assert_close(same(layer, X[0]), layer(X)[0])
    with pytest.raises(ValueError, match="x has"):
        layer(X[:, :5])
    with pytest.raises(TypeError):
        layer(X.float())
    found = []
    torch.func.vmap(lambda x: found.append(repeats(layer, x[None])) or x)(X)
    with torch.autograd.forward_ad.dual_level():
        found.append(repeats(layer))
    assert found == [False] * 2
    value, tangent = torch.func.jvp(layer, (X,), (X,))
    torch.testing.assert_close(value, layer(X))
    assert tangent.shape == value.shape


def test_autocast_and_forced_backends(monkeypatch):
    layer = bk.BcosConv2d(6, 4, 3, out_dtype=torch.bfloat16)
    usual = layer(X.float())
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(X.float()).dtype == torch.bfloat16
        assert torch.equal(layer(X.float()), usual) and repeats(layer, X.float())
    monkeypatch.setattr(dispatch, "FORCED", "reference")
    assert not repeats(layer, X.float())


def test_the_memory_is_bounded(layer, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 4)
    monkeypatch.setattr(repeated, "_PLANS", {})
    for rows in range(1, 12):
        layer(X[:1].expand(rows, -1, -1, -1))
        assert len(repeated._PLANS) <= 4
