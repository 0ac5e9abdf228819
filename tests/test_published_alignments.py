"""CoDA-Nets' layers: published ones compute what their own code computes, changed ones run their own forward."""

import copy
import json
import pickle

import pytest
import torch
from coda_families import FORMULAS, Layer, PNorm, Squash, Weights, doubled, layer, network
from families import is_accelerated, plain
from norm_families import counted
from publishing import publish
from torch import nn
from torch.nn.utils import parametrize

import bcos_kernels as bk
from bcos_kernels.adopt import alignment, published
from bcos_kernels.cli.bench.coda import CODA_NETS
from bcos_kernels.core import dispatch

_published = pytest.fixture(autouse=True)(lambda monkeypatch: publish(monkeypatch, FORMULAS))


def outcome(module, x, detach=False):
    """y, the gradient of x by it, and in training those of all parameters and a second derivative."""
    for part in module.modules():
        if isinstance(part, Layer):
            part.explanation_mode(detach)
    x = x.clone().requires_grad_()
    y = module(x)
    upstream = torch.cos(torch.arange(y.numel(), dtype=x.dtype)).view(y.shape)
    (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    found = {"y": y, "dx": dx}
    if not detach:
        parameters = list(module.parameters())
        found |= dict(enumerate(torch.autograd.grad((y * upstream).sum(), parameters, retain_graph=True)))
        found["second"] = torch.autograd.grad(dx.square().sum(), x)[0]
    return {key: value.detach() for key, value in found.items()}


def same(found, truth, rtol=1e-10):
    assert found.keys() == truth.keys()
    for key, value in truth.items():
        assert (found[key] - value).norm() <= rtol * value.norm(), key


def example(*shape):
    return torch.randn(shape or (2, 3, 6, 5), dtype=torch.float64)


def reason(module):
    (row,) = bk.report(module).of("alignment")
    return row.reason


def same_as_its_own(module):
    for detach in (False, True):
        x = example()
        same(outcome(module, x, detach), outcome(plain(module), x, detach), 1e-12)


def test_every_row_of_the_table_has_a_stand_in():
    table = json.loads(published.TABLE.read_text())
    formulas = [(section, formula) for section, _, formula, *_ in FORMULAS]
    rows = [(s, row["formula"]) for s in ("alignments", "dynamic_weights", "weight_norms") for row in table[s].values()]
    assert sorted(rows, key=str) == sorted(formulas, key=str)


@pytest.mark.parametrize(
    "options",
    [{"norm": norm} for norm in ("squash", "l1", "l2")]
    + [{"stride": 2, "bias": False}, {"kernel_size": 1}, {"rank": 6, "groups": 3}, {"padding": 2, "kernel_size": 2}],
    ids=str,
)
def test_layer_family(options):
    """In float64 to 1e-10: training, explanation, and a second derivative."""
    theirs = doubled(layer(**options))
    ours = bk.accelerate(copy.deepcopy(theirs))

    def run():
        assert bk.report(ours).of("alignment")[0].backend == "cpu"
        for detach in (False, True):
            x = example()
            same(outcome(ours, x, detach), outcome(theirs, x, detach))
            assert ours.weight_mod.shape == theirs.weight_mod.shape == x.shape[-2:]

    assert set(counted(run)) == {("fused", "", "")}  # and no call ran plain


@pytest.mark.parametrize("name", CODA_NETS)
def test_a_published_network(name):
    """Its layers with an eighth of their outputs, for small images: logits, gradients, explanations."""
    net = CODA_NETS[name]
    units = [max(2, o // 8) for o in net.outputs]
    theirs = doubled(network(units, [r // 8 for r in net.ranks], net.kernels, net.strides))
    ours = bk.accelerate(copy.deepcopy(theirs))
    report = bk.report(ours)
    assert str(report) == "9 dynamic alignment layers: 9 accelerated (9 by cpu), 0 left alone\n" \
        "each of them: print(report(model).table())"  # fmt: skip
    x = example(2, 6, 16, 16)

    def run():
        for detach in (False, True):
            same(outcome(ours, x, detach), outcome(theirs, x, detach))
        found = [bk.explain(model.eval(), x, torch.tensor([[0, 1], [1, 0]])) for model in (ours, theirs)]
        assert torch.allclose(found[0].weights, found[1].weights, rtol=1e-9, atol=1e-12)
        # the logits are the contributions' sums and the bias of the network
        sums = found[0].contributions.sum((-1, -2)) - 2.2
        assert torch.allclose(sums, found[0].logits.gather(1, found[0].targets), rtol=1e-9)

    assert set(counted(run)) == {("fused", "", "")}  # and no call ran plain


def test_matrices_that_are_kept_need_its_own_forward():
    """``save_matrix``, ``reverse`` and ``reuse``: the report says why, and they work as before."""
    module, x = doubled(layer()), example()
    ours = bk.accelerate(copy.deepcopy(module))
    for one in (module, ours):
        one.save_matrix = True
    assert reason(ours) == "its save_matrix=True: it keeps its dynamic weights for reverse"
    told = counted(lambda: same(outcome(ours, x), outcome(module, x)))
    assert ("ran plain", "Layer", reason(ours)) in told
    back = example(*module(x).shape)
    ours(x)
    assert torch.equal(ours.reverse(back), module.reverse(back))
    ours.save_matrix, ours.reuse = False, True
    assert "its reuse=True" in reason(ours)
    ours.reuse = False
    assert reason(ours) is None


CHANGES = [
    (lambda m: m.weight_mod.register_forward_hook(lambda *_: None), "its .weight_mod has a hook"),
    (lambda m: m.weight_mod.norm_func.register_forward_hook(lambda *_: None), "its .norm_func has a hook"),
    (lambda m: m.weight_mod.weighting_f[1].register_forward_pre_hook(lambda *_: None), "its .1 has a hook"),
    (lambda m: setattr(m.weight_mod, "unfold", m.weight_mod.unfold), "the unfold of its .weight_mod was assigned"),
    (
        lambda m: setattr(m.weight_mod.weighting_f[1], "forward", m.weight_mod.weighting_f[1].forward),
        "the forward of its .weight_mod.weighting_f[1] was assigned",
    ),
    (lambda m: setattr(m.weight_mod.norm_func, "forward", torch.square), "the forward of its .weight_mod.norm_func"),
    (lambda m: setattr(m.weight_mod, "stride", 2), "the stride=(2, 2) of its .weight_mod contradicts"),
    (lambda m: setattr(m.weight_mod, "out_channels", 2), "has the weight (108, 5, 1, 1) for 2 outputs"),
    (lambda m: setattr(m.weight_mod, "norm_func", PNorm(2)), "return_norm is False"),
    (lambda m: setattr(m.weight_mod, "norm_func", PNorm(3, True)), "its norm_func has p=3: 1 or 2 is needed"),
    (lambda m: m.weight_mod.weighting_f.append(nn.ReLU()), "is not a sequence of two convolutions"),
    (lambda m: m.weight_mod.weighting_f.insert(1, nn.ReLU()), "is not a sequence of two convolutions"),
    (lambda m: setattr(m.weight_mod.weighting_f[0], "dilation", (2, 2)), "the first convolution of its .weight_mod"),
    (lambda m: setattr(m.weight_mod.weighting_f[0], "bias", nn.Parameter(torch.ones(5))), "has groups or a bias"),
    (lambda m: setattr(m.weight_mod.weighting_f[1], "stride", (2, 2)), "is not pointwise"),
    (lambda m: m.register_module("weight_mod", nn.Identity()), "does not have the parts weighting_f and norm_func"),
    (lambda m: setattr(m, "weight_mod", None), "its .weight_mod does not have the parts"),
    (
        lambda m: parametrize.register_parametrization(m.weight_mod.weighting_f[0], "weight", nn.Identity()),
        "its weight is parametrized: in training every read may change it",
    ),
]


@pytest.mark.parametrize("change, message", CHANGES, ids=[message for _, message in CHANGES])
def test_an_instance_changed_afterwards(change, message):
    module = bk.accelerate(doubled(layer()))
    change(module)
    module.double()
    assert message in reason(module)
    try:
        same_as_its_own(module)
    except Exception as ours:  # its own forward cannot take the change either
        with pytest.raises(type(ours)):
            plain(module)(example())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "owner, attribute",
    [(Layer, "forward"), (Weights, "forward"), (Weights, "unfold"), (Squash, "forward"), (nn.Sequential, "forward")],
)
def test_code_replaced_on_a_class(owner, attribute, when, monkeypatch):
    original = getattr(owner, attribute)
    module = bk.accelerate(doubled(layer())) if when == "after" else None
    twice = lambda *a: tuple(2 * t for t in f) if isinstance(f := original(*a), tuple) else 2 * f  # noqa: E731
    monkeypatch.setattr(owner, attribute, twice)
    if module is None:
        with pytest.warns(UserWarning, match="nothing is accelerated"):
            module = bk.accelerate(doubled(layer()))
    assert reason(module) is not None
    same_as_its_own(module)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 3, 6, 5, dtype=torch.long), "its input is torch.int64, torch.strided: a dense tensor"),
        (torch.zeros(2, 3, 6, 5), "its weight is torch.float64 on cpu and its input torch.float32 on cpu"),
        (torch.zeros(3, 6, 5, dtype=torch.float64), r"its input has the shape (3, 6, 5): four dimensions"),
        (torch.zeros(2, 4, 6, 5, dtype=torch.float64), "does not fit its convolutions"),
    ],
)
def test_an_unusual_input_runs_its_own_forward(x, message):
    module = bk.accelerate(doubled(layer()))
    found = alignment.find(module, x)
    assert isinstance(found, str) and message in found
    results = []
    for one in (module, plain(module)):
        try:
            results.append(one(x))
        except (RuntimeError, IndexError) as error:
            results.append(str(error))
    assert str(results[0]) == str(results[1])


def test_copies_pickles_and_restore():
    module, x = bk.accelerate(doubled(layer())), example()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert is_accelerated(other) and reason(other) is None
        same(outcome(other, x), outcome(module, x), 1e-15)
        assert type(bk.restore(other)) is Layer


def test_a_backend_of_the_layers_alone_may_stand_in_the_environment(monkeypatch):
    monkeypatch.setattr(dispatch, "FORCED", "torch")
    (row,) = bk.report(bk.accelerate(doubled(layer()))).of("alignment")
    assert row.backend == "torch"


def test_what_is_no_candidate():
    assert not alignment.is_candidate(bk.DAUConv2d(3, 4, 5)) and not alignment.is_candidate(nn.Conv2d(3, 4, 1))
    assert not bk.report(nn.Conv2d(3, 4, 1)).rows
