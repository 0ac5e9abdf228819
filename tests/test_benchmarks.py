"""The parts of ``bench``: workloads, paired timing, the parity gate, memory, and whole models."""

import copy
import gc
import re
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bcos_kernels.adopt.report import Row
from bcos_kernels.cli import measure as timing
from bcos_kernels.cli.bench import contenders as contending
from bcos_kernels.cli.bench import layers as measured
from bcos_kernels.cli.bench import models, rows, tasks, workloads
from bcos_kernels.cli.bench.contenders import WORST, Contender, build, error
from bcos_kernels.cli.bench.devices import Cpu
from bcos_kernels.compat import import_reference
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.core.choice import Choice
from bcos_kernels.transform import TRANSFORM, Spec

TINY = workloads.Layer("vit_s", (8, 24), Spec(), (16, 24), batch=8)
CONV = workloads.Layer("resnet50", (2, 3, 5, 5), Spec((2, 2), (1, 1), (1, 1)), (4, 3, 3, 3), batch=2)
THREE = {"plain", "reference", "ours"}


def contest(layer, measure, wanted=THREE, **options):
    return measured.contest(layer, build(layer.reference(), layer.plain(), wanted), measure, **options)


# ------------------------------------------------------------------------------------------------ workloads


def test_workloads_are_the_reference_models_layers():
    found = workloads.workloads()
    names = [layer.name for layer in found]
    assert len(set(names)) == len(names) == len({replace(layer, model="") for layer in found})
    assert {layer.model for layer in found} == set(workloads.MODELS)
    assert {"resnet50/224x224-6-k7s2-64", "vit_s/1568-384-1536", "resnext50/28x28-256-g32k3s1-256"} <= set(names)
    shared = {layer.name: layer.models for layer in found}
    assert shared["resnet50/224x224-6-k7s2-64"] == ("resnet50", "resnext50", "densenet121")
    assert shared["vit_s/1568-384-1536"] == ("vit_s", "vitc_s")
    assert [layer.spec.groups for layer in found if "-dw" in layer.name] == [96, 192, 384, 768]
    for layer in found:
        if re.search("resnet50/7x7-512-k3s1|convnext_t/7x7-768-dw|vit_s/8|resnext50/7x7-1024-g32k3", layer.name):
            with torch.no_grad():
                y = layer.reference()(layer.input())
            assert y.shape == layer.plain()(layer.input()).shape and y.numel() == layer.outputs
    quarter = workloads.workloads("384-1536$", 8, 2, models=["vit_s"], image=112)
    assert [layer.name for layer in quarter] == ["vit_s/98-384-1536"]


def test_norms_are_workloads_beside_the_plain_norm():
    found = {w.name: w for w in workloads.workloads("norm", 2) if isinstance(w, workloads.Norm)}
    assert {"resnet50/norm-56x56-256", "vit_s/norm-392-384", "convnext_t/norm-7x7-768"} <= set(found)
    assert found["resnet50/norm-7x7-2048"].models == ("resnet50", "resnext50")
    for name in ("resnet50/norm-7x7-512", "vit_s/norm-2-384", "convnext_t/norm-7x7-768"):
        norm = found[name]
        x = norm.input()
        assert norm.reference()(x).shape == norm.plain()(x).shape == x.shape and norm.values == 2 * x.numel()
        for measure in measured.MEASURES:
            errors, refused = contest(norm, measure).admitted()
            assert refused == {} and {"plain", "reference", "ours"} <= set(errors), measure


def test_a_resized_layer_is_the_models_at_that_size():
    at = {image: workloads.workloads("", 2, models=["resnet50", "vit_s"], image=image) for image in (224, 64)}
    pointwise = [w for w in at[64] if isinstance(w, workloads.Norm) or w.weight_shape[2:] in ((), (1, 1))]
    small = {w for w in at[64] if w.model == "vit_s" or w in pointwise}
    resized = {layer.resized(2, 64) for layer in at[224]}
    assert small <= resized


def test_floor_is_the_longer_of_traffic_and_products():
    rates = {"bytes/s": 1e3, "FLOP/s": 1e9}
    linear = workloads.Layer("m", (4, 8), Spec(), (5, 8))
    conv = replace(CONV, spec=replace(CONV.spec, stride=(1, 1)), x_shape=(2, 3, 3, 3))
    found = measured.floor(linear, "forward", 2, rates)
    assert found == {"flops": 2 * 160, "bytes": 2 * (32 + 40 + 20), "seconds": 2 * (32 + 40 + 20) / 1e3}
    rates = {"bytes/s": 1e9, "FLOP/s": 1e3}
    assert measured.floor(conv, "training", 2, rates)["seconds"] == pytest.approx(3 * 2 * 72 * 27 / 1e3)
    both, alone = (measured.floor(conv, "explanation", 2, rates, alone)["flops"] for alone in (False, True))
    assert both == 2 * alone


# ------------------------------------------------------------------------------------------------ timing and memory


def test_interleave_pairs_the_rounds_and_takes_turns():
    order = []
    calls = {name: (lambda n=name, s=s: (order.append(n), time.sleep(s))) for name, s in (("a", 2e-3), ("b", 8e-3))}
    times = timing.interleave(calls, seconds=0, least=4)
    assert order[2 * timing.WARM_UP :] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [len(samples) for samples in times.values()] == [4, 4]
    assert timing.ratio(times["b"], times["a"]) > 1.5


def test_a_name_tells_what_is_unusual():
    assert TINY.name == "vit_s/8-24-16" and CONV.name == "resnet50/5x5-3-k3s2-4"
    spec = replace(CONV.spec, groups=3, dilation=(2, 2), b=1.5, max_out=2)
    layer = workloads.Layer("m", (2, 3, 9, 9), spec, (6, 1, 3, 3))
    assert layer.name == "m/9x9-3-dw3s2-3-d2-b1.5-max2"
    with torch.no_grad():
        y = replace(layer, spec=replace(spec, max_out=1), weight_shape=(3, 1, 3, 3)).plain()(layer.input())
    assert y.shape == (2, 3, 4, 4) and layer.outputs == y.numel()


def test_summary():
    assert timing.summarise([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"p50": 3.5, "p20": 2.0, "p80": 5.0, "n": 6}
    assert timing.geomean([1.0, 4.0]) == pytest.approx(2)


def test_peak_is_the_most_that_is_held_at_once():
    def call():
        first = torch.empty(1000, 1000)
        first = None  # noqa: F841
        return torch.empty(500, 1000), torch.empty(250, 1000)

    assert Cpu().peak(call) == 4_000_000


def test_python_collects_nothing_while_a_peak_is_measured():
    """Cycles of an earlier row would be freed within the call, and their memory taken from what the call holds."""
    collecting = []
    Cpu().peak(lambda: collecting.append(gc.isenabled()))
    assert collecting == [False] and gc.isenabled()


def test_a_stack_saves_what_its_layers_keep():
    """Plain: each layer's input. Reference: more than that. The stack's own output counts for nobody."""
    x = torch.randn(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)

    def stack(conv):
        made = [conv(i, o, k, padding=p, bias=False) for i, o, k, p in ((32, 8, 1, 0), (8, 8, 3, 1), (8, 32, 1, 0))]
        return nn.Sequential(*made).to(memory_format=torch.channels_last)

    import_reference()
    from bcos.modules import BcosConv2d

    contenders = build(stack(BcosConv2d), stack(nn.Conv2d), THREE)
    assert set(contenders) == THREE
    made = contest(CONV, "training")
    found = {
        name: rows._saved(replace(made, contenders=contenders, graph=lambda m: m(x.clone().requires_grad_())), name)
        for name in contenders
    }
    assert found["plain"] == 4 * 2 * 16 * (32 + 8 + 8)
    assert found["reference"] > 2 * found["plain"] and found["ours"] >= found["plain"]


# ------------------------------------------------------------------------------------------------ parity


def broken(module, value=None):
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        wrong.linear.weight[0] *= -1
        if value is not None:
            wrong.linear.weight.fill_(value)
    return Contender(wrong)


@pytest.mark.parametrize("layer", [TINY, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize("measure", measured.MEASURES)
def test_parity_gate_lets_ours_pass_and_refuses_a_wrong_layer(measure, layer):
    """Also when one image in two is checked: every dx and dw of those counts."""
    contenders = build(layer.reference(), layer.plain(), THREE)
    contenders |= {"wrong": broken(contenders["ours"].module), "nan": broken(contenders["ours"].module, torch.nan)}
    for every in (1, 2):
        errors, refused = measured.contest(layer, contenders, measure, every=every).admitted()
        assert set(errors) == THREE and errors["plain"] is None
        assert set(refused) == {"wrong", "nan"} and "above" in refused["wrong"]


class Zeros(nn.Module):
    """A module's output with gradients of zero."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x).detach() + 0 * (x.sum() + sum(p.sum() for p in self.module.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("depth", [2, 60], ids=["above zero", "underflow"])
def test_zero_gradients_are_refused_also_where_the_reference_has_no_others(depth, dtype):
    """60 layers without a norm: the explanation is below what fp32 holds, and so is the reference's."""
    import_reference()
    from bcos.modules import BcosLinear

    torch.manual_seed(0)
    contenders = build(nn.Sequential(*(BcosLinear(64, 64) for _ in range(depth))).to(dtype), None, THREE)
    contenders |= {"zeros": Contender(Zeros(contenders["ours"].module))}
    made = models.contest(contenders, torch.rand(4, 64, dtype=dtype), "explanation", 4)
    found = rows.measured(made, contenders.keys(), Cpu(), 0, 3)
    if depth == 2:
        assert set(found["contenders"]) == {"reference", "ours"} and set(found["refused"]) == {"zeros"}
    else:
        assert found["contenders"] == {} and "it is no bound for the others" in found["refused"]["every contender"]


@pytest.mark.parametrize("measure", ["explained batch", "explained grids"])
def test_whole_explanations_are_those_of_the_reference_and_of_ours(measure, monkeypatch):
    """The reference explains one image and one class at a time by its own method, ours a batch of several classes."""
    bcos = import_reference()
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    reference = bcos.modules.BcosSequential(bcos.modules.BcosConv2d(6, 12, 3), *head)
    contenders = build(reference, nn.Sequential(nn.Conv2d(6, 12, 3), *head), THREE)
    images, classes = models.EXPLAINED[measure]
    made = models.contest(contenders, torch.rand(images, 6, 18, 17), measure, 4)
    found = rows.measured(made, contenders.keys(), Cpu(), 0, 3)
    assert found["refused"] == {} and set(found["contenders"]) == THREE
    pictures = made.step(contenders["ours"].module)()
    assert pictures.shape == (images, classes, 18, 17, 4)
    calls, explain = [], type(reference).explain
    monkeypatch.setattr(type(reference), "explain", lambda *args, **options: calls.append(explain(*args, **options)))
    made.step(reference)()
    assert [call["explained_class_idx"] for call in calls[:images]] == [n * 7 % 12 for n in range(images)]
    assert len(calls) == images * classes
    assert abs(calls[0]["explanation"] - pictures[0, 0].numpy()).max() < 1e-4


def test_further_classes_are_backwards_through_a_graph_that_is_there(monkeypatch):
    """Ours forms several rows in one backward, where more than a few are asked for; the others one class at a time."""
    torch.manual_seed(0)
    bcos = import_reference()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    reference = bcos.modules.BcosSequential(bcos.modules.BcosConv2d(6, 12, 3), *head)
    contenders = build(reference, nn.Sequential(nn.Conv2d(6, 12, 3), *head), THREE)
    images, classes = models.EXPLAINED["further classes"]
    made = models.contest(contenders, torch.rand(images, 6, 18, 17), "further classes", 4)
    found = rows.measured(made, contenders.keys(), Cpu(), 0, 3)
    assert found["refused"] == {} and set(found["contenders"]) == THREE
    taken = []
    backward = models.backward
    monkeypatch.setattr(
        models, "backward", lambda y, x, gradients, **kept: taken.append(backward(y, x, gradients, **kept))
    )
    for name in THREE:
        made.step(contenders[name].module)()
        assert [len(t) for t in taken] == ([classes] if name == "ours" else [1] * classes)
        assert all(t.shape[1:] == (images, 6, 18, 17) for t in taken)
        taken.clear()


def test_a_contender_that_fails_is_refused_and_the_others_are_timed():
    made = contest(TINY, "forward")
    ours = made.contenders["ours"].module

    def step(module):
        return made.step(module) if module is not ours else lambda: 1 / 0

    found = rows.measured(replace(made, step=step), THREE, Cpu(), 0, 3)
    assert found["refused"] == {"ours": "ZeroDivisionError: division by zero"}
    assert {name: len(c["samples"]) for name, c in found["contenders"].items()} == {"plain": 3, "reference": 3}


def test_a_forced_candidate_gets_a_figure_only_where_it_served(monkeypatch):
    """Where it does not exist another one serves in its place, whose times are not its own."""
    candidates = {candidate.name: candidate for candidate in TRANSFORM.candidates_of("triton")}

    @contextmanager
    def forced(name):
        yield {"forward": (None, Choice(candidates["vendor"], None, "forced"))}

    monkeypatch.setattr(contending, "forced", forced)
    made = contest(TINY, "forward")
    ours = made.contenders["ours"].module
    named = {f"ours/triton/{name}": Contender(ours, "triton", name) for name in ("vendor", "semi")}
    errors, refused = replace(made, contenders=made.contenders | named).admitted()
    assert set(errors) == THREE | {"ours/triton/vendor"} and refused == {}


def test_what_serves_a_layer_is_told_without_its_tile(monkeypatch):
    choices = "triton vendor (predicted)", "triton semi 16×16×16 (predicted: triton semi 2 µs)", "cuda vendor (forced)"
    found = (
        Row("0", "BcosConv2d", "triton", choices=choices),
        Row("1", "BcosLinear", "cpu"),
        Row("2", "Odd", None, "odd"),
    )
    monkeypatch.setattr(contending, "report", lambda *args: SimpleNamespace(rows=found, layers=found))
    ways = [contending.served(Contender(nn.Identity()), torch.ones(1), direction) for direction in DIRECTIONS]
    others = {"cpu": 1, "own forward": 1}
    assert ways == [{name: 1} | others for name in ("triton/vendor", "triton/semi", "cuda/vendor")]


def test_explanation_measure_freezes_the_scale_and_leaves_the_mode():
    layer = TINY.reference()
    x, grad = TINY.input(), torch.randn(8, 16)
    explained = measured.outputs(layer, x, grad, "explanation")[1]
    trained = measured.outputs(layer, x, grad, "training")[1]
    assert not layer.detach and not torch.allclose(explained, trained)


def test_explanation_alone_is_the_gradient_of_x():
    call = contest(CONV, "explanation", alone=True).call("ours")
    first, again = call(), call()
    assert first.shape == CONV.x_shape and torch.equal(first, again)


# ------------------------------------------------------------------------------------------------ whole models


def small_network():
    import_reference()
    from bcos.modules import BcosConv2d, BcosLinear, BcosSequential

    features = BcosConv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False), BcosConv2d(8, 8, 3, stride=2)
    head = nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), BcosLinear(8, 5)
    return models.still(BcosSequential(*features, *head))


FEW = "resnet50", "vgg11", "vit_s"
"""One of each kind of network."""


@pytest.mark.parametrize(
    "model", [pytest.param(model, marks=[pytest.mark.slow] * (model not in FEW)) for model in workloads.MODELS]
)
def test_the_plain_network_multiplies_as_often_as_the_references(model):
    """Within a tenth: a class token, biases, and one linear layer more in torchvision's attention."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    with torch.device("meta"), torch.no_grad():
        for network in (workloads._on_meta(model), models.plain(model, 224)):
            with FlopCounterMode(display=False) as counter:
                assert network.eval()(torch.empty(1, 6, 224, 224)).shape == (1, 1000)
            counted.append(counter.get_total_flops())
    assert counted[1] == pytest.approx(counted[0], rel=0.1)


@pytest.mark.slow
def test_the_untrained_vgg_has_an_explanation():
    """As a run builds it; as the reference initialises it, fp32 holds none and the reference's error is 1."""
    vgg, x, classes = tasks._reference("vgg11").eval(), torch.rand(1, 6, 64, 64), [torch.tensor([7])]
    exact = models.explanations(copy.deepcopy(vgg).double(), x.double(), classes)
    found = error(models.explanations(vgg, x, classes), exact)
    assert max(found) < 1e-4 < WORST, found


@pytest.mark.parametrize("measure", models.MEASURES)
def test_a_model_is_checked_and_a_wrong_one_refused(measure):
    torch.manual_seed(0)
    reference = small_network()
    contenders = build(reference, None, THREE)
    wrong = copy.deepcopy(contenders["ours"].module)
    with torch.no_grad():
        wrong[0].linear.weight[0] *= -1
    before = [t.clone() for t in reference.state_dict().values()]
    made = models.contest(contenders | {"wrong": Contender(wrong)}, torch.rand(3, 6, 9, 9), measure, 2)
    errors, refused = made.admitted()
    assert set(errors) == {"reference", "ours"} and set(refused) == {"wrong"}
    assert len(errors["ours"]) == (1 if measure == "inference" else 2)
    made.call("reference")()
    contest_again = models.contest(contenders, torch.rand(3, 6, 9, 9), "inference", 2)
    ours = contenders["ours"].module.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before[:1], list(ours)[:1], strict=True)), "a step moved the weights"
    assert contest_again.contenders["reference"].module is reference and not reference.training


def test_an_explanation_is_the_gradient_of_the_frozen_model():
    model = small_network().eval()
    x, classes = torch.rand(2, 6, 9, 9), torch.tensor([1, 3])
    y, *found = models.explanations(model, x, [classes, classes + 1])
    for gradient, chosen in zip(found, (classes, classes + 1), strict=True):
        # a frozen B-cos network is linear in its input
        assert torch.allclose((gradient * x).sum((1, 2, 3)), y.gather(1, chosen[:, None])[:, 0], rtol=1e-4)
    assert not any(getattr(module, "detach", False) is True for module in model.modules())
