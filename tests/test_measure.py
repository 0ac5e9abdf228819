"""``accelerate(model, unpublished="measure")``: unknown code is compared with the formulas, and reported so."""

import copy

import families
import pytest
import torch
from families import altered, assert_close, example, is_accelerated, outcome
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt import measure
from bcos_kernels.compat import import_reference

bcos = import_reference()


def measured(layer):
    """The layer, accelerated if a measurement allows it."""
    return bk.accelerate(layer, unpublished="measure")


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch):
    monkeypatch.setattr(measure, "_results", {})


class Formula(nn.Module):
    """The published formula of a linear layer, in code that nobody has published."""

    def __init__(self, inputs=6, outputs=4, b=2.0):
        super().__init__()
        self.linear = families.UnitLinear(inputs, outputs, bias=False)
        self.b, self.detach, self.gain = b, False, 1.0

    def forward(self, x):
        scale = self.factor(self.linear(x), families.row_norm(x))
        return self.linear(x) * (scale.detach() if self.detach else scale) * self.gain

    def factor(self, l, norm):  # noqa: E741
        return (l.abs() / norm + (self.b != 2) * 1e-6) ** (self.b - 1)


@pytest.mark.parametrize("name", families.layers(2))
def test_a_formula_is_found(name):
    layer = families.layers(1.5)[name]
    x = example(layer)
    theirs = [outcome(layer, x, explain) for explain in (False, True)]
    measured(layer)
    (row,) = bk.report(layer).rows
    assert row.measured and row.backend is not None
    assert "measured: its code is not published" in str(bk.report(layer))
    for explain in (False, True):
        assert_close(outcome(layer, x, explain), theirs[explain])


@pytest.mark.parametrize("name", families.layers(2))
def test_the_output_has_the_dtype_of_the_own_forward_under_autocast(name):
    """Where the norm of the unknown code is a convolution, autocast computes all of it in half precision."""
    layer = families.layers(1.5)[name].float()
    x, found = example(layer).float(), []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(layer(x).dtype)
        measured(layer)
    assert found[0] == found[1] and bk.report(layer).accelerated == 1


def test_a_copy_without_dilation_has_the_usual_norm():
    """A layer's constructor assigns another norm for dilation to the instance; without dilation it must go."""
    with pytest.warns(UserWarning, match="dilation > 1"):
        layer = bcos.modules.BcosConv2d(4, 6, 3, dilation=2).double()
    assert "calc_patch_norms" in vars(layer)
    for part in (layer, layer.linear):
        measure._plain_geometry(part)
    plain = bcos.modules.BcosConv2d(4, 6, 3).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


def test_what_was_measured_survives_copies():
    layer = measured(Formula().double())
    other = copy.deepcopy(layer)
    assert is_accelerated(other) and bk.report(other).rows[0].measured
    assert torch.equal(other(example(layer)), layer(example(layer)))


# layers that look like B-cos layers and are none: each was accelerated once, and computed something else then


class DroppedInTraining(Formula):
    def factor(self, l, norm):  # noqa: E741
        return nn.functional.dropout(super().factor(l, norm), 0.2, self.training)


class CappedExponent(Formula):
    def factor(self, l, norm):  # noqa: E741
        b, self.b = self.b, min(self.b, 3)
        scale = super().factor(l, norm)
        self.b = b
        return scale


class ClampedNorm(Formula):
    def factor(self, l, norm):  # noqa: E741
        return super().factor(l, norm.clamp(max=100))


class ByWidth(Formula):
    def factor(self, l, norm):  # noqa: E741
        return super().factor(l, norm) * (1 if self.linear.in_features < 64 else 0.5)


class BySequence(Formula):
    """Inputs with a sequence are normed over it as well."""

    def forward(self, x):
        norm = families.row_norm(x) if x.dim() < 3 else x.square().sum((-2, -1), keepdim=True).sqrt()
        scale = self.factor(self.linear(x), norm)
        return self.linear(x) * (scale.detach() if self.detach else scale)


class Remembering(Formula):
    """The published formula, and a count of its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class OtherFormula(nn.Module):
    """Everything of a convolution but the formula."""

    def __init__(self, epsilon=1e-6, power=0.0):
        super().__init__()
        self.linear = families.UnitConv2d(6, 4, 3, bias=False)
        self.b, self.detach, self.epsilon, self.power = 2, False, epsilon, power

    def forward(self, x):
        l = self.linear(x)  # noqa: E741
        norm = (families.window_norm(x, self.linear) ** 2 - 1e-6 + self.epsilon).sqrt()
        scale = l.abs() / norm
        if self.detach:
            scale = scale.detach()
        return scale ** (self.b - 1 + self.power) * l


class BiasBehind(Formula):
    """A bias that the scale does not see; that of the published formulas is part of l."""

    def __init__(self):
        super().__init__()
        self.linear = families.UnitLinear(6, 4, bias=True)

    def forward(self, x):
        bias = self.linear.bias
        l = self.linear(x) - bias  # noqa: E741
        scale = self.factor(l, families.row_norm(x))
        return l * (scale.detach() if self.detach else scale) + bias


class Failing(Formula):
    def forward(self, x):
        raise LookupError("no table")


@pytest.mark.parametrize(
    "make, message",
    [
        (DroppedInTraining, "in training"),
        (BiasBehind, "none of the published formulas"),
        (Failing, "its own forward fails on a small input: LookupError: no table"),
        (lambda: altered(Formula(), linear=nn.Identity()), "its .linear is Identity, neither nn.Conv2d nor nn.Linear"),
        (lambda: altered(Formula(), linear=nn.LazyLinear(4, bias=False)), "its weight is not initialised yet"),
        (lambda: altered(Formula(), forward=lambda x: x), "its forward was assigned on the instance"),
        (CappedExponent, "seen at b=4.0"),
        (ClampedNorm, "none of the published formulas"),
        (lambda: ByWidth(64), "none of the published formulas"),
        (Remembering, "changes the module"),
        (lambda: OtherFormula(epsilon=1e-5), "none of the published formulas"),
        (lambda: OtherFormula(power=1e-6), "none of the published formulas"),
        (lambda: altered(Formula(), gain=0.5), "none of the published formulas"),
        (lambda: altered(Formula(), extra=nn.ReLU()), "also holds extra"),
        (lambda: altered(Formula(), shift=nn.Parameter(torch.ones(1))), "also holds shift"),
    ],
)
def test_left_alone(make, message):
    layer = make()
    with pytest.warns(UserWarning, match=message):
        measured(layer)
    assert not is_accelerated(layer)


def test_inputs_of_another_rank_run_the_own_forward():
    layer = measured(BySequence().double())
    assert bk.report(layer).accelerated == 1
    for x in (example(layer), example(layer).unflatten(0, (2, 2))):
        assert torch.allclose(layer(x), bk.restore(copy.deepcopy(layer))(x), rtol=1e-12)


def test_an_attribute_changed_later_is_measured_again():
    layer = measured(Formula().double())
    x = example(layer)
    before = layer(x)
    assert bk.report(layer).accelerated == 1
    layer.gain = 0.5
    assert torch.allclose(layer(x), before / 2, rtol=1e-12)
    assert "none of the published formulas" in bk.report(layer).rows[0].reason


def test_a_method_patched_later_is_measured_again(monkeypatch):
    layer = measured(Formula().double())
    x = example(layer)
    before = layer(x)
    monkeypatch.setattr(Formula, "factor", lambda self, linear, norm: linear.abs() / norm * 3)
    assert torch.allclose(layer(x), before * 3, rtol=1e-12)
    assert bk.report(layer).accelerated == 0


def test_the_default_measures_nothing():
    layer = Formula()
    with pytest.warns(UserWarning, match="not among the published"):
        bk.accelerate(layer)
    assert not is_accelerated(layer) and not measure._results


def test_the_measurement_disturbs_nothing(several_threads):
    layer = families.ModelGuidance.BcosConv2d(6, 4, 3, padding=1, b=1.5)
    calls = []
    layer.linear.register_forward_hook(lambda *_: calls.append(1))
    with_hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append(2))
    weight, before = layer.linear.weight.detach().clone(), torch.get_rng_state()
    own = {k: copy.copy(v) for k, v in vars(layer).items()}
    threads = torch.get_num_threads()
    try:
        with torch.no_grad(), torch.device("meta"):
            measured(layer)
            learned = measured(families.Bcosification.BcosifyLinear(6, 4, clamping=True))
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
    measured(nn.Sequential(*(Formula(b=b) for b in (1, 2, 2.5) for _ in range(3))))
    assert len(measure._results) == 1


def test_unpublished_is_one_of_two_words():
    with pytest.raises(ValueError, match="unpublished='trust': allowed are 'leave' and 'measure'"):
        bk.accelerate(nn.ReLU(), unpublished="trust")


def test_a_parametrized_linear_part_is_measured_by_its_own_code():
    """And not by that of the class below it, which would be remembered for layers without a parametrization, too."""
    ours = [Formula().double().eval() for _ in range(2)]
    nn.utils.parametrizations.weight_norm(ours[0].linear)
    theirs, x = copy.deepcopy(ours), example(ours[0])
    for layer, reference in zip(map(measured, ours), theirs, strict=True):
        assert bk.report(layer).accelerated == 1
        assert torch.allclose(layer(x), reference(x), rtol=1e-12)


@pytest.mark.parametrize("parametrized_first", [True, False])
def test_a_parametrized_weight_is_read_as_often_as_by_the_layer(parametrized_first):
    """Spectral norm takes a step of its power iteration whenever the weight is read in training."""
    torch.manual_seed(0)
    ours = Formula().double()
    theirs = copy.deepcopy(ours)
    if not parametrized_first:
        measured(ours)
    for layer in (ours, theirs):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(layer.linear, n_power_iterations=1)
    measured(ours)
    x = example(ours)
    for training in (True, True, False, True):
        assert_same_state(ours.train(training), theirs.train(training))
        assert torch.allclose(ours(x), theirs(x), rtol=1e-12)
        assert bk.report(ours).accelerated == (not training)
    assert_same_state(copy.deepcopy(ours), theirs)


def assert_same_state(ours, theirs):
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
