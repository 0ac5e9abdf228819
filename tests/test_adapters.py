"""Adapters, as LoRA's, in the place of a part of a layer of this package, and what must see its part's calls."""

import pytest
import torch
from coda_families import Layer, Squash, Weights
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

M = import_reference().modules


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("subclassed", [False, True])
def test_a_plain_linear_part_that_was_assigned_keeps_its_filters(hooked, subclassed):
    """As in the reference, where a layer calls what stands in the place of its linear part."""
    ours, theirs = bk.BcosConv2d(6, 4, 3, padding=1).double(), M.BcosConv2d(6, 4, 3, padding=1).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before = ours(x)  # which is kept as a plan
    plain = nn.Conv2d(6, 4, 3, padding=1, bias=False).double()
    if subclassed:
        plain = nn.utils.parametrizations.weight_norm(plain)
    for layer in (ours, theirs):
        layer.linear = plain
    if hooked:
        plain.register_forward_hook(lambda *_: None)
    assert (ours(x) - theirs(x)).norm() < 1e-12 * theirs(x).norm() and ours(x).ne(before).any()
    if not hooked and not subclassed:
        folded = bk.fold(ours.eval())
        assert (folded(x) - theirs(x)).norm() < 1e-12 * theirs(x).norm()
    ours.linear = bk.modules.NormedConv2d(6, 4, 3, padding=1, bias=False).double()
    ours.linear.weight = nn.Parameter(plain.weight.detach() * 3)
    unit = M.BcosConv2d(6, 4, 3, padding=1).double()
    unit.linear.weight = ours.linear.weight
    assert (ours(x) - unit(x)).norm() < 1e-12 * unit(x).norm()


class Wrapped(nn.Module):
    """A module around the layer, which hands out its weight, as the package ``peft`` has it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.gain = base, nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.gain * self.base_layer(x)


def derived(base):
    """A module of a class that is derived from the layer's, with the layer's weight."""

    class Derived(type(base)):
        def forward(self, x):
            return self.gain * super().forward(x)

    made = Derived.__new__(Derived)
    vars(made).update(vars(base))
    made._parameters = {**base._parameters, "gain": nn.Parameter(torch.tensor(1.5, dtype=torch.float64))}
    return made


ADAPTERS = [Wrapped, derived]
LAYERS = [
    ("BcosLinear", {"out_features": 4, "in_features": 6}, (3, 6)),
    ("BcosLinear", {"out_features": 4, "in_features": 6, "max_out": 2, "b": 1.5}, (3, 5, 6)),
    ("BcosConv2d", {"in_channels": 6, "out_channels": 4, "kernel_size": 3, "padding": 1, "stride": 2}, (2, 6, 7, 5)),
    ("BcosConv2d", {"in_channels": 6, "out_channels": 4, "groups": 2, "max_out": 2, "b": 1.5}, (2, 6, 7, 5)),
]


def results(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    found = torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])
    return [y, *sorted((g for g in found), key=lambda g: g.numel())]


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("adapt", ADAPTERS)
@pytest.mark.parametrize("name, options, shape", LAYERS)
def test_an_adapter_in_the_place_of_the_linear_part(name, options, shape, adapt, called_before, detach):
    torch.manual_seed(0)
    theirs, ours = getattr(M, name)(**options).double(), getattr(bk, name)(**options).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    if called_before:
        ours(x)
    for layer in (theirs, ours):
        layer.linear = adapt(layer.linear)
        layer.set_explanation_mode(detach)
    for mine, its in zip(results(ours, x), results(theirs, x), strict=True):
        assert (mine - its).norm() <= 1e-12 * its.norm()
    assert f"its .linear is {type(ours.linear).__name__}" in bk.report(ours).table()


def test_a_wrapper_that_hands_out_no_weight():
    """The geometry of a convolution is then the layer's own, as in ``bcos``."""
    theirs, ours = (of(6, 4, 3, padding=1, stride=2).double() for of in (M.BcosConv2d, bk.BcosConv2d))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    theirs.linear, ours.linear = nn.Sequential(theirs.linear), nn.Sequential(ours.linear)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-12)


def test_a_derived_class_without_code_of_its_own_is_fused():
    class Named(nn.Linear):
        """As sharding and parametrizations make them."""

    layer = bk.BcosLinear(6, 4, normalize_weights=False)
    x, y = torch.randn(3, 6), layer(torch.ones(3, 6))
    layer.linear.__class__ = Named
    assert torch.equal(layer(torch.ones(3, 6)), y)
    assert "cpu" in bk.report(layer).table() and torch.isfinite(layer(x)).all()


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name, options, shape", LAYERS)
def test_a_hook_of_all_modules(name, options, shape, called_before):
    """As those that count operations or look for NaN set it."""
    theirs, ours = getattr(M, name)(**options).double(), getattr(bk, name)(**options).double()
    ours.load_state_dict(theirs.state_dict())
    x, seen = torch.randn(shape, dtype=torch.float64), []
    if called_before:
        ours(x)

    def hook(module, args, y):
        seen.append(type(module).__name__)
        return 2 * y if module.__class__.__name__.startswith("Normed") else None

    handle = register_module_forward_hook(hook)
    try:
        found = [results(layer, x) for layer in (ours, theirs)]
        assert "global module hook" in bk.report(ours).table()
    finally:
        handle.remove()
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] and len(seen) == 4
    for mine, its in zip(*found, strict=True):
        assert (mine - its).norm() <= 1e-12 * its.norm()
    assert (ours(x) - theirs(x)).norm() <= 1e-12 * theirs(x).norm()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("adapt", [*ADAPTERS, "hook", "pruned"])
def test_what_makes_dynamic_weights(adapt, part):
    torch.manual_seed(0)
    theirs = Layer(Weights(3, 4, 6, Squash(), stride=2)).double()
    ours = bk.DAUConv2d(3, 4, 6, 3, 2).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    for layer in (theirs, ours):
        made = layer.weight_mod.weighting_f
        if adapt == "hook":
            made[part].register_forward_hook(lambda module, args, y: 2 * y)
        elif adapt == "pruned":
            prune.l1_unstructured(made[part], "weight", 0.5)
            layer(x).square().sum().backward()  # the weight of the next call is another tensor
        else:
            made[part] = adapt(made[part])
    for detach in (False, True):
        for layer in (theirs, ours):
            layer.explanation_mode(detach)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        mine, its = ours(inputs[0]), theirs(inputs[1])
        assert torch.allclose(mine, its, rtol=1e-12)
        mine.sin().sum().backward(), its.sin().sum().backward()
        for a, b in zip((inputs[0], *ours.parameters()), (inputs[1], *theirs.parameters()), strict=True):
            assert a.grad is b.grad is None or (a.grad - b.grad).norm() <= 1e-12 * b.grad.norm()
    assert "adapter" in bk.report(ours).table()
    assert torch.allclose(ours(x[0]), ours(x[:1])[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.float()(x.float()).dtype == bk.DAUConv2d(3, 4, 6, 3, 2)(x.float()).dtype
