"""Every published family is recognised and equals its own forward; the rest is left alone, with a reason."""

import copy

import families
import pytest
import torch
from families import Doubled, OwnForward, X, altered, assert_close, example, is_accelerated, outcome
from torch import nn

import bcos_kernels as bk
from bcos_kernels import dispatch, integration, probe
from bcos_kernels.compat import import_reference

bcos = import_reference()
M = bcos.modules


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
@pytest.mark.parametrize("name", families.layers(2))
def test_family(name, b):
    layer = families.layers(b)[name]
    x = example(layer)
    theirs = [outcome(layer, x, explain) for explain in (False, True)]
    bk.accelerate(layer)
    assert bk.report(layer).rows[0].backend in dispatch.BACKENDS
    for explain in (False, True):
        assert_close(outcome(layer, x, explain), theirs[explain])


@pytest.mark.parametrize(
    "make",
    [
        lambda: M.BcosConv2d(6, 4, 3, padding=1),
        lambda: M.BcosConv2d(6, 4, 3, padding=1, b=1.25, groups=2),
        lambda: M.BcosConv2d(6, 4, 3, padding=2, dilation=2),
        lambda: M.BcosConv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        lambda: M.BcosConv2d(6, 6, 5, padding=2, groups=6, b=2.5),
        lambda: M.BcosConv2dWithScale(6, 4, 3, max_out=2),
        lambda: M.BcosConv2dWithScale(6, 4, 3, b=1, scale=3.0),
        lambda: M.BcosLinear(6, 4, b=1.5, max_out=3),
    ],
)
def test_layers_of_bcos(make):
    layer = make().double()
    x = example(layer)
    theirs = [outcome(layer, x, explain) for explain in (False, True)]
    bk.accelerate(layer)
    assert is_accelerated(layer)
    for explain in (False, True):
        assert_close(outcome(layer, x, explain), theirs[explain])


def test_late_mode_is_read_in_the_backward():
    """Model guidance's order: forward outside of the mode, gradient inside, loss on the gradient outside."""
    layer = families.ModelGuidance.BcosConv2d(6, 4, 3, padding=1).double()
    x = example(layer)

    def guidance():
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        families.set_mode(layer, True)
        (explanation,) = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        families.set_mode(layer, False)
        (y.sum() + explanation.square().sum()).backward()
        return {"explanation": explanation.detach(), "dw": layer.linear.weight.grad}

    theirs = guidance()
    bk.accelerate(layer)
    assert_close(guidance(), theirs)


def test_the_two_late_linears_are_told_apart():
    guided, language = families.layers(1.5)["late linear"], families.layers(1.5)["language model"]
    bk.accelerate(nn.ModuleList([guided, language]))
    assert integration._plan(guided).variant.cos_eps == 0
    assert integration._plan(language).variant.cos_eps == 1e-6


def test_padding_that_the_layer_refuses_does_not_matter():
    layer = M.BcosConv2d(6, 4, 3, padding="same").double()
    bk.accelerate(layer)
    alike = bk.BcosConv2d(6, 4, 3, padding=1).double()
    alike.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(X), alike(X), rtol=1e-12)


# left alone


class OwnImpl(M.BcosConv2d):
    def forward_impl(self, in_tensor):
        return super().forward_impl(in_tensor)


class OwnNorm(M.BcosConv2d):
    def calc_patch_norms(self, in_tensor):
        return super().calc_patch_norms(in_tensor) + 1


class OtherFormula(nn.Module):
    """Everything of the protocol but the formula."""

    def __init__(self, epsilon=1e-6, power=0.0):
        super().__init__()
        self.linear = families.UnitConv2d(6, 4, 3, bias=False)
        self.b, self.detach, self.epsilon, self.power = 2, False, epsilon, power

    def forward(self, x):
        l = self.linear(x)  # noqa: E741
        norm = (self.calc_patch_norms(x) ** 2 - 1e-6 + self.epsilon).sqrt()
        scale = l.abs() / norm
        if self.detach:
            scale = scale.detach()
        return scale ** (self.b - 1 + self.power) * l

    def calc_patch_norms(self, x):
        return families.window_norm(x, self.linear)


class SlowNorm(OtherFormula):
    """Published but for the norm that it binds to itself when it is dilated."""

    def __init__(self):
        super().__init__()
        self.linear = families.UnitConv2d(6, 4, 3, dilation=2, bias=False)
        self.calc_patch_norms = self._calc_patch_norms_slow

    def _calc_patch_norms_slow(self, x):
        return families.window_norm(x, self.linear) + 1e-3


class Remembering(nn.Module):
    """The published formula, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.linear = families.UnitLinear(6, 4, bias=False)
        self.b, self.detach, self.calls = 1, False, 0

    def forward(self, x):
        self.calls += 1
        l = self.linear(x)  # noqa: E741
        scale = (l.abs() / families.row_norm(x) + (self.b != 2) * 1e-6) ** (self.b - 1)
        return l * (scale.detach() if self.detach else scale)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: OwnForward(6, 4, 3), "OwnForward overrides forward"),
        (lambda: OwnImpl(6, 4, 3), "OwnImpl overrides forward_impl"),
        (lambda: OwnNorm(6, 4, 3), "OwnNorm overrides calc_patch_norms"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), linear=nn.Sequential()), "is Sequential, neither"),
        (lambda: altered(M.BcosLinear(6, 4), linear=Doubled(6, 4)), "none of the published formulas"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), forward=lambda x: x), "forward was assigned"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), extra=nn.ReLU()), "also holds extra"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), gain=nn.Parameter(torch.ones(1))), "also holds gain"),
        (lambda: OtherFormula(epsilon=1e-5), "none of the published formulas"),
        (SlowNorm, "none of the published formulas"),
        (lambda: OtherFormula(power=1e-6), "none of the published formulas"),
        (
            lambda: altered(M.BcosConv2d(6, 4, 3), calc_patch_norms=lambda x: x),
            "none of the published|fails on",
        ),
    ],
)
def test_left_alone_with_the_reason(make, reason):
    layer = make()
    kind = type(layer)
    bk.accelerate(layer)
    assert type(layer) is kind
    (row,) = bk.report(layer).rows
    assert row.backend is None
    assert any(part in row.reason for part in reason.split("|")), row.reason
    assert bk.report(layer).left_alone == 1


def test_a_function_on_the_instance_is_seen_after_a_layer_without():
    assert is_accelerated(bk.accelerate(M.BcosConv2d(6, 4, 3)))
    layer = altered(M.BcosConv2d(6, 4, 3), calc_patch_norms=lambda x: x)
    assert not is_accelerated(bk.accelerate(layer))


def test_a_forward_with_a_side_effect_is_left_alone():
    layer = bk.accelerate(Remembering())
    assert "changes the module" in bk.report(layer).rows[0].reason
    assert layer.calls == 0


def test_a_subclass_that_keeps_the_mathematics_is_accelerated():
    class Named(M.BcosConv2d):
        def extra_repr(self):
            return "named"

    layer = bk.accelerate(Named(6, 4, 3))
    assert is_accelerated(layer)
    assert type(layer).__name__ == "Named"
    assert repr(layer).startswith("Named(\n  named")


def test_other_modules_are_not_reported():
    assert bk.report(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Linear(3, 3))).rows == ()
    assert str(bk.report(nn.ReLU())) == "no B-cos layers"
    norm = M.norms.BatchNormUncentered2d(4)
    assert bk.report(bk.accelerate(nn.Sequential(norm))).rows == ()


# the probe


def test_the_probe_disturbs_nothing():
    probe._results.clear()
    layer = families.ModelGuidance.BcosConv2d(6, 4, 3, padding=1, b=1.5)
    calls = []
    layer.linear.register_forward_hook(lambda *_: calls.append(1))
    with_hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(2))
    weight, before = layer.linear.weight.detach().clone(), torch.get_rng_state()
    own = {k: copy.copy(v) for k, v in vars(layer).items()}
    threads = torch.get_num_threads()
    try:
        with torch.no_grad(), torch.device("meta"):
            bk.accelerate(layer)
            learned = bk.accelerate(families.Bcosification.BcosifyLinear(6, 4, clamping=True))
    finally:
        with_hook.remove()
    assert is_accelerated(layer) and is_accelerated(learned)
    assert calls == []
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layer.linear.weight, weight)
    assert layer.linear.weight.grad is None
    assert vars(layer) == own
    assert layer.dynamic_multiplication.state == {"fixed_weights": False}
    assert torch.get_num_threads() == threads


def test_one_measurement_serves_alike_layers():
    probe._results.clear()
    bk.accelerate(nn.Sequential(*(M.BcosConv2d(n, n + 1, 3, padding=1, b=b) for n in range(4, 9) for b in (1, 2))))
    assert len(probe._results) == 1


def test_a_layer_whose_exponent_becomes_a_parameter_later():
    """B-cosification's trainer makes b a parameter once the model is built; before, the layer cannot run."""
    layer = families.Bcosification.BcosifyLinear(6, 4, clamping=True).double()
    del layer.b
    layer.b = 1.5
    bk.accelerate(layer)
    assert bk.report(layer).rows[0].reason == "its b is clamped and no tensor"
    del layer.b
    layer.b = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    x = example(layer)
    ours = outcome(layer, x)
    assert bk.report(layer).accelerated == 1
    assert_close(ours, outcome(bk.restore(layer), x))
