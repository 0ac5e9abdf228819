"""Calls of layers and norms in which all reads as before: whatever changes between two is noticed.

A layer is one of the package ``bcos`` that was accelerated, or one of this package.
"""

import copy
import gc
from functools import partial

import pytest
import torch
from families import is_accelerated, plain
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.adopt import layer as layers
from bcos_kernels.adopt import norm as norms
from bcos_kernels.compat import import_reference
from bcos_kernels.core import dispatch, kernels, plans
from bcos_kernels.transform import repeated

M = import_reference().modules
X = torch.randn(2, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = X[..., 0, 0].contiguous()
THEIRS, OURS = M.BcosConv2d, bk.BcosConv2d

pytestmark = pytest.mark.skipif(repeated._C is None, reason="the extension reads the modules")


@pytest.fixture(params=[THEIRS, OURS], ids=["accelerated", "ours"])
def layer(request):
    """A layer that was called before, and whose next call repeats that one."""
    torch.manual_seed(0)
    made = bk.accelerate(request.param(6, 4, 3, b=1.5).double()) if request.param is THEIRS else OURS(6, 4, 3, b=1.5)
    made.double()(X)
    assert repeats(made)
    return made


def repeats(layer, x=X):
    if is_accelerated(layer):
        return layers.repeat(layer, x) is not None
    return isinstance(repeated.repeated(layer, x), Tensor)


def expected(layer, x=X):
    """What an accelerated layer's own forward computes, and one of ours where it is read in Python."""
    if is_accelerated(layer):
        return plain(layer)(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "_C", None)
        return layer(x)


def same(layer, x=X):
    y = layer(x)
    assert torch.allclose(y, expected(layer, x), rtol=1e-12)
    return y


def gradient(function, x=X):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


class Tagged(torch.Tensor):
    pass


def tripled(input, weight, bias):
    return nn.functional.conv2d(input, 3 * weight, bias)


def set_on_both(layer, name, value, its):
    """A layer of ``bcos`` holds what its linear part has once more."""
    setattr(layer.linear, name, its)
    if is_accelerated(layer):
        setattr(layer, name, value)


def other_kernel(layer):
    layer.linear.weight = nn.Parameter(torch.randn(4, 6, 1, 1).double())
    set_on_both(layer, "kernel_size", 1, (1, 1))
    if is_accelerated(layer):
        layer.patch_size = 1


CHANGES = [
    (lambda m: setattr(m, "b", 2), True),
    (lambda m: setattr(m, "b", torch.tensor(1.25).double()), False),
    (lambda m: setattr(m, "b", nn.Parameter(torch.tensor(1.25).double())), False),
    (lambda m: m.linear.weight.data.mul_(-torch.arange(1, 5).view(4, 1, 1, 1)), True),
    (lambda m: setattr(m.linear, "weight", nn.Parameter(torch.randn(4, 6, 3, 3).double())), True),
    (other_kernel, True),
    (lambda m: set_on_both(m, "stride", 2, (2, 2)), True),
    (lambda m: set_on_both(m, "padding", 1, (1, 1)), True),
    (lambda m: set_on_both(m, "padding", [1, 1], [1, 1]), False),
    (lambda m: setattr(m, "detach", torch.tensor(True)), False),
    (lambda m: setattr(m.linear, "bias", nn.Parameter(torch.randn(4).double())), True),
    (lambda m: m.linear.register_forward_hook(lambda *args: 2 * args[2]), False),
    (lambda m: m.linear.register_forward_pre_hook(lambda module, args: (2 * args[0],)), False),
    (lambda m: m.linear.register_full_backward_hook(lambda *_: None), False),
    (lambda m: setattr(m.linear, "forward", lambda x: 2 * x[:, :4, 1:-1, 1:-1]), False),
    (lambda m: setattr(m, "calc_patch_norms", lambda x: x.new_ones(1)), False),
    (lambda m: nn.utils.parametrize.register_parametrization(m.linear, "weight", nn.Tanh()), False),
    (lambda m: nn.utils.parametrizations.weight_norm(m.linear), False),
    (lambda m: vars(m).update(linear=nn.Conv2d(6, 4, 3, bias=False).double()), False),
    (lambda m: setattr(m, "linear", nn.Conv2d(6, 4, 3, bias=False).double()), True),
]
"""A change of a layer, and whether calls are still repeated afterwards."""
OF_THEIRS = [
    (lambda m: m.add_module("more", nn.Identity()), False),
    (lambda m: setattr(m.linear, "_conv_forward", tripled), False),
    (lambda m: setattr(m, "linear", M.bcosconv2d.NormedConv2d(6, 4, 3, bias=False).double()), True),
]
OF_OURS = [
    (lambda m: setattr(m, "max_out", 2), True),
    (lambda m: (setattr(m.linear, "padding", (1, 1)), setattr(m.linear, "padding_mode", "reflect")), False),
    (lambda m: setattr(m, "normalize_weights", False), True),
    (lambda m: setattr(m, "norm_eps", (1.0, 0.0)), True),
    (lambda m: setattr(m, "b_rule", "offset"), False),
    (lambda m: setattr(m, "backend", "reference"), False),
]


@pytest.mark.parametrize(
    "layer, change, still_repeats",
    [(kind, *row) for kind, own in ((THEIRS, OF_THEIRS), (OURS, OF_OURS)) for row in (*CHANGES, *own)],
    indirect=["layer"],
)
def test_a_change_between_two_calls(layer, change, still_repeats):
    before = layer(X)
    change(layer)
    y = same(layer)
    assert y.shape != before.shape or not torch.equal(y, before) or not still_repeats
    assert repeats(layer) == still_repeats
    same(layer)


def test_the_explanation_mode(layer):
    for mode in (True, False, True):
        layer.set_explanation_mode(mode)
        assert torch.allclose(gradient(layer), gradient(partial(expected, layer)), rtol=1e-10) and repeats(layer)


def test_a_mode_that_is_a_tensor(layer):
    layer.detach = torch.tensor(True)
    for mode in (True, True, False):
        layer.detach.fill_(mode)
        found = gradient(layer)
        assert torch.allclose(found, gradient(partial(expected, layer)), rtol=1e-10)
    layer.detach.fill_(True)
    assert not torch.equal(gradient(layer), found)


@pytest.mark.parametrize("layer", [OURS], indirect=True)
@pytest.mark.parametrize("name, value", [("norm_eps", (1.0, 0.0)), ("b_rule", "offset")])
def test_a_change_of_the_class(layer, monkeypatch, name, value):
    before = layer(X)
    monkeypatch.setattr(OURS, name, value)
    assert not torch.equal(same(layer), before)
    assert repeats(layer) == (name == "norm_eps")


def test_a_method_of_a_class(layer, monkeypatch):
    before = layer(X)
    owner = THEIRS if is_accelerated(layer) else OURS
    monkeypatch.setattr(owner, "calc_patch_norms", lambda self, x: x.new_ones(1))
    assert not torch.equal(same(layer), before)


@pytest.mark.parametrize("layer", [THEIRS], indirect=True)
def test_a_property_in_the_place_of_an_attribute(layer, monkeypatch):
    for name, value in (("b", 3), ("detach", True)):
        with monkeypatch.context() as patch:
            patch.setattr(THEIRS, name, property(lambda self, value=value: value), raising=False)
            assert not repeats(layer)
            same(layer)
        assert repeats(layer)


def test_an_attribute_that_is_only_its_classs(layer, monkeypatch):
    del layer.b
    for b in (2, 3):
        monkeypatch.setattr(THEIRS if is_accelerated(layer) else OURS, "b", b, raising=False)
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
        for forward in (layer, partial(expected, layer)):
            inputs = x.clone().requires_grad_()
            y = forward(inputs)
            found.append((y, *torch.autograd.grad(y.square().sum(), (inputs, layer.weight))))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert repeats(layer, x)


def test_inputs_of_other_kinds(layer):
    assert torch.equal(layer(X[:1]), layer(X)[:1]) and repeats(layer, X[:1])
    same(layer, X.contiguous(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="x has"):
        layer(X[:, :5])
    assert layer(X.as_subclass(Tagged)).as_subclass(torch.Tensor).equal(layer(X))
    assert not repeats(layer, X.as_subclass(Tagged)) and not repeats(layer, X[0])
    with pytest.raises(TypeError):
        layer(X.float())


def test_modes_and_transforms(layer):
    y = layer(X)
    assert torch.equal(torch.func.vmap(lambda x: layer(x[None])[0])(X), y)
    value, tangent = torch.func.jvp(layer, (X,), (X,))
    assert torch.allclose(value, y, rtol=1e-12) and tangent.shape == y.shape
    assert torch.equal(torch.jit.trace(layer, X)(X), y)
    with torch.no_grad():
        assert not layer(X).requires_grad
    assert layer(X).requires_grad and repeats(layer)


def test_a_call_that_is_followed_repeats_none(layer):
    found = []
    torch.func.vmap(lambda x: found.append(repeats(layer, x[None])) or x)(X)
    torch.jit.trace(lambda x: found.append(repeats(layer, x)) or x + 1, X, check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        found.append(repeats(layer))
    assert found == [False] * 3
    assert repeats(layer)


def test_global_hooks_and_forced_backends(layer, monkeypatch):
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(lambda *_: None)
        assert not repeats(layer)
        same(layer)
        handle.remove()
        assert repeats(layer)
    monkeypatch.setattr(dispatch, "FORCED", "reference")
    assert not repeats(layer)
    same(layer)


@pytest.mark.parametrize("kind", [THEIRS, OURS])
def test_autocast(kind):
    out_dtype = {"out_dtype": torch.bfloat16}
    layer = OURS(6, 4, 3, **out_dtype) if kind is OURS else bk.accelerate(THEIRS(6, 4, 3, b=2), **out_dtype)
    x = X.float()
    usual = layer(x)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert torch.equal(layer(x), usual) and repeats(layer, x)


@pytest.mark.parametrize("layer", [THEIRS], indirect=True)
def test_copies(layer):
    for other in (copy.deepcopy(layer), copy.copy(layer), layer._replicate_for_data_parallel()):
        other._modules = dict(other._modules)
        other.linear = copy.deepcopy(layer.linear)
        with torch.no_grad():
            other.linear.weight.copy_(torch.randn(4, 6, 3, 3))
        same(other)
        same(layer)
        assert not torch.equal(other(X), layer(X))


@pytest.mark.parametrize("layer", [THEIRS], indirect=True)
def test_plans_that_another_thread_empties_are_no_output(layer, monkeypatch):
    monkeypatch.setattr(plans, "keep", lambda _, key, plan: plan)
    x = X[:1].clone()  # of a shape that was not met before
    assert torch.allclose(layer(x), plain(layer)(x), rtol=1e-10)


@pytest.mark.parametrize("layer", [OURS], indirect=True)
def test_the_memory_is_bounded(layer, monkeypatch):
    monkeypatch.setattr(plans, "MOST", 4)
    monkeypatch.setattr(repeated, "_PLANS", {})
    for rows in range(1, 12):
        layer(X[:1].expand(rows, -1, -1, -1))
        assert len(repeated._PLANS) <= 4


# norms


@pytest.fixture
def batch_norm():
    made = bk.accelerate(M.norms.BatchNormUncentered2d(6).double())
    made(X)
    assert norms.repeat(copy.deepcopy(made), X) is not None
    return made


def same_norm(norm, x=X):
    """Compares a norm with a copy that has its own forward, and their buffers; returns whether it repeats."""
    other = plain(norm)
    repeated = norms.repeat(copy.deepcopy(norm), x) is not None
    for _ in range(2):
        assert torch.allclose(norm(x), other(x), rtol=1e-12)
    for mine, yours in zip(norm.buffers(), other.buffers(), strict=True):
        assert torch.allclose(mine, yours, rtol=1e-12)
    return repeated


@pytest.mark.parametrize(
    "change, repeats",
    [
        (lambda m: m.eval(), True),
        (lambda m: m.set_explanation_mode(True), True),
        (lambda m: setattr(m, "eps", 0.5), True),
        (lambda m: setattr(m, "momentum", 0.7), True),
        (lambda m: setattr(m, "momentum", None), True),
        (lambda m: setattr(m, "track_running_stats", False), True),
        (lambda m: setattr(m, "num_batches_tracked", None), True),
        (lambda m: (setattr(m, "num_batches_tracked", None), m.eval()), True),
        (lambda m: setattr(m, "running_var", torch.full((6,), 3.0).double()), True),
        (lambda m: (setattr(m, "running_var", torch.full((6,), 3.0).double()), m.eval()), True),
        (lambda m: (setattr(m, "running_var", m.running_var.float()), m.eval()), False),
        (lambda m: m.eval().running_var.requires_grad_(), False),
        (lambda m: (setattr(m, "running_var", None), setattr(m, "running_mean", None), m.eval()), True),
        (lambda m: setattr(m, "weight", None), True),
        (lambda m: m.weight.data.fill_(2), True),
        (lambda m: m.bias.data.fill_(2), True),
        (lambda m: setattr(m, "weight", nn.Parameter(torch.ones(1).double())), False),
        (lambda m: vars(m).update(bias=torch.ones(6).double()), False),
        (lambda m: m.add_module("more", nn.Identity()), False),
        (lambda m: setattr(m, "_check_input_dim", lambda x: None), None),
        (lambda m: m.register_forward_hook(lambda *args: 2 * args[2]), True),
    ],
)
def test_a_change_of_a_norm_between_two_calls(batch_norm, change, repeats):
    change(batch_norm)
    found = same_norm(batch_norm)
    assert repeats is None or found == repeats


def test_code_of_a_norm_replaced_between_two_calls(batch_norm, monkeypatch):
    monkeypatch.setattr(M.norms.BatchNormUncentered2d, "forward", lambda self, x: 3 * x)
    assert not same_norm(batch_norm)
    monkeypatch.undo()
    assert same_norm(batch_norm)


def test_norms_of_inputs_of_other_kinds(batch_norm):
    for x in (X[..., ::2], X.transpose(2, 3), X[:1], X.contiguous(memory_format=torch.channels_last)):
        same_norm(batch_norm, x)
        assert batch_norm(x).stride() == plain(batch_norm)(x).stride()
    group = bk.accelerate(M.norms.GroupNormUncentered2d(2, 6).double())
    for groups in (2, 3):
        group.num_groups = groups
        assert same_norm(group)


def test_a_running_variance_in_half_precision():
    norm = bk.accelerate(M.norms.BatchNormUncentered2d(6))
    norm.running_var = norm.running_var.bfloat16()
    other = plain(norm)
    for _ in range(3):
        assert torch.allclose(norm(X.float()), other(X.float()), rtol=1e-5)
        assert norm.running_var.dtype == torch.bfloat16 and torch.equal(norm.running_var, other.running_var)


def test_an_exponent_that_is_annealed_keeps_few_kernels(monkeypatch):
    """Each b, another number at every step, has kernels of its own; those of a graph live as long as the graph."""
    monkeypatch.setattr(plans, "MOST", 4)
    layer, own = bk.accelerate(M.BcosConv2d(6, 4, 3).double()), bk.BcosConv2d(6, 4, 3).double()
    x = X.clone().requires_grad_()
    graphs, alive = [], []
    for step in range(60):
        layer.b = own.b = 1.001 + step / 100
        y = layer(x)
        (y.sum() + own(x).sum()).backward()
        if step % 20 == 0:
            z = layer(x).square().sum()
            graphs.append((z, torch.autograd.grad(plain(layer)(x).square().sum(), x)[0]))
        if step in (19, 59):
            gc.collect()
            alive.append(len(kernels._MAKERS))
    assert alive[1] <= alive[0] + 20
    for z, expected in graphs:  # their kernels are no longer kept under any key
        assert torch.allclose(torch.autograd.grad(z, x)[0], expected, rtol=1e-10)
