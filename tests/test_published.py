"""Layers are recognised by their code: published code is accelerated, all other code is left alone with a reason."""

import copy
import json

import families
import pytest
import torch
from attention_families import Early
from families import Doubled, OwnForward, X, altered, assert_close, example, is_accelerated, outcome, reason
from torch import nn
from torch.nn.utils import parametrize

import bcos_kernels as bk
from bcos_kernels.adopt import fingerprint, published
from bcos_kernels.compat import import_reference
from bcos_kernels.transform import TRANSFORM

bcos = import_reference()
M = bcos.modules


families_published = pytest.fixture(lambda monkeypatch: families.publish(monkeypatch))


# what is published


def test_every_fingerprint_of_the_table_has_a_formula_and_an_origin():
    table = json.loads(published.TABLE.read_text())
    sections = "attentions", "gates", "layers", "linears", "modes", "norms", "slow_norms"
    assert table.keys() == {*sections, "alignments", "dynamic_weights", "weight_norms"} and all(table.values())
    for rows in table.values():
        for digest, row in rows.items():
            assert len(digest) == 16 and row["where"] and row["formula"], (digest, row)


@pytest.mark.parametrize(
    "source",
    [
        *(f"bcos-{version}" for version in ("0.0.1", "0.0.2", "0.0.3", "0.0.4", "0.1.0", "0.1.1", "0.1.2", "0.1.3")),
        "B-cos/B-cos-v2",
        "moboehle/B-cos",
        "moboehle/CoDA-Nets",
        "shrebox/B-cosification",
        "sukrutrao/Model-Guidance",
        "m-parchami/GoodTeachersExplain",
        "Ewanwong/B-cos-v2",
        "sidgairo18/how-to-probe",
        "pedroroblesduten/B-COS-Networks-Implementation",
        "rmaser/ALOE",
    ],
)
def test_the_table_covers(source):
    table = json.loads(published.TABLE.read_text())
    layers = (*table["layers"].values(), *table["alignments"].values())
    rows = [row for row in layers if any(w.split(" ")[0] == source for w in row["where"])]
    assert any("Conv2d" in row["class"] for row in rows)


@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
@pytest.mark.parametrize("name", families.layers(2))
def test_family(name, b, families_published):
    layer = families.layers(b)[name]
    x = example(layer)
    theirs = [outcome(layer, x, explain) for explain in (False, True)]
    bk.accelerate(layer)
    assert bk.report(layer).rows[0].backend in TRANSFORM.backends
    for explain in (False, True):
        assert_close(outcome(layer, x, explain), theirs[explain])


@pytest.mark.parametrize(
    "make",
    [
        lambda: M.BcosConv2d(6, 4, 3, padding=1),
        lambda: M.BcosConv2d(6, 4, (3, 1), padding=(1, 0), stride=(2, 1)),
        lambda: M.BcosConv2d(6, 4, 3, padding=1, b=1.25, groups=2),
        lambda: M.BcosConv2d(6, 4, 3, padding=2, dilation=2),
        lambda: M.BcosConv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        lambda: M.BcosConv2d(6, 6, 5, padding=2, groups=6, b=2.5),
        lambda: M.BcosConv2dWithScale(6, 4, 3, max_out=2),
        lambda: M.BcosConv2dWithScale(6, 4, 3, b=1, scale=3.0),
        lambda: M.BcosLinear(6, 4, b=1.5, max_out=3),
        lambda: M.BcosLinear(6, 4, b=True),
    ],
)
def test_layers_of_bcos(make):
    layer = make().double()
    x = example(layer)
    theirs = [outcome(layer, x, explain) for explain in (False, True)]
    bk.accelerate(layer)
    assert is_accelerated(layer)
    assert bk.report(layer).accelerated == 1
    for explain in (False, True):
        assert_close(outcome(layer, x, explain), theirs[explain])


@pytest.mark.parametrize("b", [1, 2, 2.0])
def test_a_formula_that_holds_for_some_exponents(b, families_published):
    """And an option that makes a constant of the output: both are read at every call, a repeated one as well."""
    layer = families.ClampedLinear(6, 4, b=b, max_out=2).double()
    x, theirs = example(layer), families.plain(layer)
    bk.accelerate(layer)

    def same(served):
        for explain in (False, True):
            for _ in range(2):
                assert_close(outcome(layer, x, explain), outcome(theirs, x, explain))
        assert (bk.report(layer).rows[0].backend is not None) == served

    same(True)
    for other in (1.5, torch.tensor(2.0)):
        layer.b = theirs.b = other
        same(False)
        assert "is not one of (1, 2)" in reason(layer)
    layer.b = theirs.b = b
    same(True)
    layer.detach_output = theirs.detach_output = True
    for module in (layer, theirs, layer):
        families.set_mode(module, True)
        assert not module(x).requires_grad
        families.set_mode(module, False)
        assert module(x).requires_grad
    assert "detach_output" in reason(layer)


@pytest.mark.parametrize("change, why", [
    (lambda layer: None, None),
    (lambda layer: setattr(layer, "max_out", 2), "one of several filters"),
    (lambda layer: setattr(layer.linear, "bias", nn.Parameter(torch.ones(4).double())), "beside a bias"),
])  # fmt: skip
def test_a_norm_of_the_weight_in_the_patch_norm(families_published, change, why):
    layer = families.ModelGuidance.BcosConv2d(6, 4, normalize_weights=False).double()
    theirs = copy.deepcopy(layer)
    bk.accelerate(layer)
    change(layer)
    change(theirs)
    served = bk.report(layer).rows[0].backend is not None
    assert served if why is None else why in reason(layer)
    if "several" not in (why or ""):  # the layer's own code has no such output
        assert_close(outcome(layer, example(layer)), outcome(theirs, example(layer)))


def test_known_code_that_is_left_alone_says_why(families_published, monkeypatch):
    digest = fingerprint.of(families.OneFormula.BcosConv2d.__mro__).digest
    monkeypatch.setitem(published._table()["layers"], digest, {"formula": {"left": "it is left alone on purpose"}})
    with pytest.warns(UserWarning, match="left alone on purpose"):
        layer = bk.accelerate(families.OneFormula.BcosConv2d(6, 4))
    assert reason(layer) == "it is left alone on purpose"


def test_late_mode_is_read_in_the_backward(families_published):
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
    assert is_accelerated(layer)
    assert_close(guidance(), theirs)


def test_padding_that_the_layer_refuses_does_not_matter():
    layer = M.BcosConv2d(6, 4, 3, padding="same").double()
    bk.accelerate(layer)
    alike = bk.BcosConv2d(6, 4, 3, padding=1).double()
    alike.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(X), alike(X), rtol=1e-12)


def test_a_subclass_that_keeps_the_mathematics_is_accelerated():
    class Named(M.BcosConv2d):
        def extra_repr(self):
            return "named"

    layer = bk.accelerate(Named(6, 4, 3))
    assert is_accelerated(layer)
    assert type(layer).__name__ == "Named"
    assert repr(layer).startswith("Named(\n  named")


def test_a_layer_whose_exponent_becomes_a_parameter_later(families_published):
    """B-cosification's trainer makes b a parameter once the model is built; before, the layer cannot run."""
    layer = families.Bcosification.BcosifyLinear(6, 4, clamping=True).double()
    del layer.b
    layer.b = 1.5
    bk.accelerate(layer)
    assert reason(layer) == "its b is clamped but is not a tensor"
    del layer.b
    layer.b = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    x = example(layer)
    ours = outcome(layer, x)
    assert bk.report(layer).accelerated == 1
    assert_close(ours, outcome(bk.restore(layer), x))


# left alone


class OwnImpl(M.BcosConv2d):
    def forward_impl(self, in_tensor):
        return super().forward_impl(in_tensor)


class OwnNorm(M.BcosConv2d):
    def calc_patch_norms(self, in_tensor):
        return super().calc_patch_norms(in_tensor) + 1


class OwnGroups(M.BcosConv2d):
    groups = property(lambda self: 1, lambda self, value: None)


UNKNOWN = "not among the published"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OwnForward(6, 4, 3), UNKNOWN),
        (lambda: OwnImpl(6, 4, 3), UNKNOWN),
        (lambda: OwnNorm(6, 4, 3), UNKNOWN),
        (lambda: OwnGroups(6, 4, 3), "groups is not a plain function"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), linear=nn.Sequential()), "is Sequential, neither"),
        (lambda: altered(M.BcosLinear(6, 4), linear=Doubled(6, 4)), "its .linear: the code of Doubled.forward"),
        (lambda: altered(M.BcosConv2d(6, 4, 3), forward=lambda x: x), "forward was assigned"),
        (lambda: families.FirstVersion.BcosConv2d(6, 4, 3), UNKNOWN),
    ],
)
def test_left_alone_with_the_reason(make, message):
    layer = make()
    kind = type(layer)
    with pytest.warns(UserWarning, match="nothing is accelerated"):
        bk.accelerate(layer)
    assert type(layer) is kind
    assert message in reason(layer)


def test_other_modules_are_not_reported():
    assert bk.report(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Linear(3, 3))).rows == ()
    assert str(bk.report(nn.ReLU())) == "no B-cos layers"
    assert bk.report(nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4))).rows == ()


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.Linear(2, 2))])
def test_a_model_without_bcos_layers_warns(model):
    with pytest.warns(UserWarning, match="nothing is accelerated: it has no B-cos layers: none of its modules holds"):
        bk.accelerate(model)


# classes that somebody puts on top


class Shifted(nn.Module):
    def forward(self, weight):
        return weight + 1


def test_restore_and_report_see_through_a_parametrization(families_published):
    layer = bk.accelerate(families.Minimal.BcosConv2d(6, 4, 3, padding=1).double().eval())
    parametrize.register_parametrization(layer, "weight", Shifted())
    assert type(layer).__name__.startswith("Parametrized")
    assert bk.report(layer).accelerated == 1
    y = layer(X)
    assert not is_accelerated(bk.restore(layer))
    assert bk.report(layer).rows[0].reason.startswith("not accelerated")
    assert torch.allclose(layer(X), y, rtol=1e-12)
    bk.accelerate(layer)
    assert bk.report(layer).accelerated == 1
    assert torch.allclose(layer(X), y, rtol=1e-12)


def test_restore_and_report_see_through_a_dynamic_subclass():
    """``fully_shard`` changes the class of each module as this does."""

    class Sharded:
        def reshard(self):
            return "resharded"

    layer = bk.accelerate(M.BcosLinear(6, 4).double(), backend="reference")
    layer.__class__ = type("FSDP" + type(layer).__name__, (Sharded, type(layer)), {})
    assert bk.report(layer).rows[0].backend == "reference"
    bk.accelerate(layer)  # another plan takes the place of the first
    assert bk.report(layer).rows[0].backend != "reference"
    bk.restore(layer)
    assert bk.report(layer).rows[0].reason.startswith("not accelerated")
    assert layer.reshard() == "resharded"
    assert isinstance(layer, (Sharded, M.BcosLinear))
    assert type(layer).__name__ == "FSDPBcosLinear"


def test_torch_jit_script_says_what_to_do():
    model = bk.accelerate(nn.Sequential(M.BcosLinear(6, 4)))
    with pytest.raises(RuntimeError, match=r"bcos_kernels\.restore\(model\) first"):
        torch.jit.script(model)
    bk.restore(model)
    x = torch.randn(2, 6)
    assert torch.allclose(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("kind", [bk.BcosConv2d, bk.BcosConv2dWithScale])
def test_an_unknown_keyword_warns(kind):
    with pytest.warns(UserWarning, match=rf"{kind.__name__}\(B=1\.5\): unknown"):
        kind(6, 8, 3, B=1.5)


def test_keywords_that_callers_of_the_reference_pass_do_not_warn(recwarn):
    bk.BcosConv2d(6, 8, 3, bias=False, scale_fact=1000)
    assert not recwarn.list


@pytest.mark.filterwarnings("ignore:accelerate")
@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind(M.BcosLinear)(6, 4),
        lambda kind: kind(M.norms.BatchNormUncentered2d)(6),
        lambda kind: kind(Early)(8, 2, 4, linear_layer=nn.Linear, norm_layer=nn.LayerNorm),
    ],
    ids=["layer", "norm", "attention"],
)
def test_a_class_that_finds_its_attributes_otherwise(make):
    """Its code is the published one, and may read other values."""

    def otherwise(cls):
        return type(cls.__name__, (cls,), {"__getattr__": lambda self, name: nn.Module.__getattr__(self, name)})

    module = bk.accelerate(make(otherwise))
    assert bk.report(module).rows[0].reason == f"{type(module).__name__} changes how its attributes are found"
