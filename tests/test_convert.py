"""``convert``: a second conversion in plain torch gives the same numbers, and with b = 1 the plain network's."""

import copy
import io
import json
import math
import pickle
from collections import Counter, OrderedDict

import pytest
import torch
from conversion_families import NETWORKS, Second, images, models, network, normalized, six
from families import set_mode
from torch import nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

bcos = import_reference()

SAME = {"b": 1, "bias": True, "average_pool": False, "logit_bias": None}
"""Options with which a converted network computes what the plain one does, in evaluation."""


def explain(model, on):
    for module in model.modules():
        if hasattr(module, "set_explanation_mode"):
            set_mode(module, on)


def outcomes(model, x, training):
    """Logits, gradients and buffers after a step, in training or evaluation; and an explanation in evaluation."""
    model.train(training)
    y = model(x)
    total = (y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)).sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = [y, *torch.autograd.grad(total, parameters, allow_unused=True)]
    found += [b for key, b in model.named_buffers() if key.endswith("running_var")]
    explain(model, True)
    inputs = x.clone().requires_grad_()
    y = model(inputs)
    found += torch.autograd.grad((y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)).sum(), inputs)
    explain(model, False)
    return found


def assert_same(ours, theirs, rtol=1e-10):
    """Each tensor of ours is that of theirs; parameters may stand in another order, and zeros in place of None."""
    assert (ours[0] - theirs[0]).norm() <= rtol * theirs[0].norm()
    assert (ours[-1] - theirs[-1]).norm() <= rtol * theirs[-1].norm() and theirs[-1].any()
    sizes = [
        sorted((t.numel(), t.norm().item()) for t in found if t is not None and t.any()) for found in (ours, theirs)
    ]
    assert len(sizes[0]) == len(sizes[1])
    for a, b in zip(*sizes, strict=True):
        assert a[0] == b[0] and math.isclose(a[1], b[1], rel_tol=1e-8, abs_tol=1e-300)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_second_conversion(name):
    plain = network(name)
    ours, theirs = bk.convert(plain, logit_bias=None), Second(plain, name)
    assert ours.logit_layer is None and not ours.training
    for training in (False, True):
        assert_same(outcomes(ours, six(), training), outcomes(theirs, six(), training))


@pytest.mark.parametrize("name", ["resnet", "convnext", "vit", "clip"])
def test_a_loss_on_an_explanation(name):
    """The second derivatives, by the parameters, of what is trained with explanations."""
    plain = network(name)
    losses = []
    for model in (bk.convert(plain, logit_bias=None), Second(plain, name).eval()):
        explain(model, True)
        x = six().requires_grad_()
        (explanation,) = torch.autograd.grad(model(x)[:, 0].sum(), x, create_graph=True)
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(explanation.square().sum(), parameters, allow_unused=True)
        losses.append([explanation, *found, explanation])
    assert_same(*losses)


def test_the_unpooled_attention_pool():
    plain = network("clip")
    ours, theirs = bk.convert(plain, attn_unpool=True), Second(plain, "clip", unpool=True)
    assert ours.logit_layer is None  # embeddings are no logits
    assert not {"model.attnpool.q_proj.weight", "model.attnpool.k_proj.weight"} & set(ours.state_dict())
    unused = ("q_proj", "k_proj")
    for key, parameter in theirs.named_parameters():
        parameter.requires_grad_(not any(part in key for part in unused) and "positional" not in key)
    found = outcomes(ours, six(), False)
    assert found[0].shape == (16, 2, 6)
    assert_same(found, outcomes(theirs, six(), False))


@pytest.mark.parametrize("name", NETWORKS)
def test_with_b_1_it_is_the_plain_network(name):
    """All weights, biases, statistics and positions are carried over, and [W, -W]/2 sees what W saw."""
    plain = network(name)
    converted = bk.convert(plain, **SAME, pool_logits=name != "convnext")  # its head has a norm behind the pooling
    with torch.no_grad():
        y, truth = converted(six()), plain(normalized(images(), name))
    assert truth.std() > 1e-3
    assert (y - truth).norm() <= 1e-12 * truth.norm()


def test_the_plain_network_is_left_as_it_is():
    plain = network("vgg_bn")
    before = copy.deepcopy(plain.state_dict())
    kinds = [type(m) for m in plain.modules()]
    bk.convert(plain)
    assert [type(m) for m in plain.modules()] == kinds and plain.features[2].inplace
    assert all(torch.equal(a, b) for a, b in zip(before.values(), plain.state_dict().values(), strict=True))


def test_the_logits_are_biased_and_activations_work_out_of_place():
    plain = network("resnet")
    converted = bk.convert(plain.train())
    assert converted.training and converted.logit_layer.logit_bias == -math.log(6)
    assert not any(getattr(m, "inplace", False) for m in converted.modules())
    assert not any(key.endswith("bias") for key in converted.state_dict())
    converted.eval()
    unbiased = bk.convert(plain, logit_bias=None).eval()
    assert torch.equal(converted(six()), unbiased(six()) - math.log(6))
    assert bk.convert(plain, logit_bias=2).logit_layer.logit_bias == 2.0


def test_keys_are_those_of_the_plain_network():
    plain = network("densenet")
    keys = set(bk.convert(plain, bias=True).state_dict())
    layers = {n for n, m in plain.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    expected = {
        f"model.{stem}.linear.{leaf}" if (stem := key.rpartition(".")[0]) in layers else f"model.{key}"
        for key in plain.state_dict()
        for leaf in [key.rpartition(".")[2]]
    }
    assert keys == expected


def test_state_dicts_whose_sequences_are_numbered_are_taken():
    """The published code replaces ``nn.Sequential`` by one that has lost the names of its modules."""
    plain, other = network("densenet"), bk.convert(network("densenet"))
    converted = bk.convert(plain)
    for parameter in other.parameters():
        parameter.data.normal_()
    names = {f"model.features.{name}.": f"model.features.{i}." for i, name in enumerate(plain.features._modules)}
    numbered = {}
    for key, value in other.state_dict().items():
        stem = next((s for s in names if key.startswith(s)), "")
        numbered[names.get(stem, "") + key.removeprefix(stem)] = value
    assert set(numbered) != set(converted.state_dict())
    converted.load_state_dict(numbered)
    assert torch.equal(converted(six()), other(six()))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        converted.load_state_dict({**numbered, f"model.features.{len(names)}.weight": torch.zeros(1)})


class ShiftedNames(nn.Module):
    """A downsampling part as CLIP's: its names are numbers, but not those of the positions."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential()
        for name, part in zip(("-1", "0", "1"), (nn.AvgPool2d(2), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), strict=True):
            self.down.add_module(name, part)

    def forward(self, x):
        return self.down(x)


def test_numbered_state_dicts_where_names_are_other_numbers():
    converted, other = (bk.convert(ShiftedNames().eval(), logit_bias=None) for _ in range(2))
    shift = {"model.down.0.": "model.down.1.", "model.down.1.": "model.down.2."}
    numbered = {shift[key[:13]] + key[13:]: value for key, value in other.state_dict().items()}
    converted.load_state_dict(numbered)
    x = six(dtype=torch.float32)
    assert torch.equal(converted(x), other(x))


@pytest.mark.parametrize("name", ["resnet", "vit", "clip"])
def test_copies_pickles_and_state_dicts(name):
    converted = bk.convert(network(name))
    y = converted(six())
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    others = [copy.deepcopy(converted), pickle.loads(pickle.dumps(converted)), torch.load(file, weights_only=False)]
    blank = bk.convert(network(name))
    for parameter in blank.parameters():
        parameter.data.zero_()
    blank.load_state_dict(converted.state_dict())
    for other in (*others, blank):
        assert torch.equal(other(six()), y)
        assert str(other.report) == str(converted.report)


@pytest.mark.parametrize("name", ["densenet", "vit"])
def test_it_is_explained_by_the_references_protocol(name):
    converted = bk.convert(network(name))
    x = six(count=1).requires_grad_()
    with bcos.common.explanation_mode(converted):
        assert all(m.detach for m in converted.modules() if hasattr(m, "set_explanation_mode"))
        converted(x)[0].max().backward()
    assert not any(m.detach for m in converted.modules() if hasattr(m, "set_explanation_mode"))
    found = converted.explain(six(count=1))
    assert torch.equal(found["dynamic_linear_weights"], x.grad)
    assert torch.equal(found["contribution_map"], (x * x.grad).sum(1))
    assert found["prediction"] == found["explained_class_idx"] == converted(x).argmax().item()
    second = converted.explain(six(count=1), idx=2)
    assert second["explained_class_idx"] == 2
    assert not torch.equal(second["dynamic_linear_weights"], x.grad)


def test_an_explanation_sums_up_to_its_logit():
    """Without a norm's mean, a bias or a position, a network is linear in its normalised input in explanation mode."""
    converted = bk.convert(network("resnet"), mean=(0,) * 6, std=(1,) * 6, logit_bias=None)
    found = converted.explain(six(count=1), idx=3)
    assert torch.isclose(found["contribution_map"].sum(), converted(six(count=1))[0, 3], rtol=1e-9)


def test_what_explain_does_not_take():
    converted = bk.convert(network("resnet"))
    for image, idx, message in [
        (six(), None, r"image has shape \(2, 6, 32, 32\)"),
        (six(count=1), 7, "class 7 is out of range, the model has 7 classes"),
        (images(count=1), None, r"images has shape \(1, 3, 32, 32\).*AddInverse"),
    ]:
        with pytest.raises(ValueError, match=message):
            converted.explain(image, idx)
        assert not any(m.detach for m in converted.modules() if hasattr(m, "set_explanation_mode"))
    with pytest.raises(ValueError, match=r"training mode: call model\.eval\(\)"):
        converted.train().explain(six(count=1))


@pytest.mark.parametrize("rule, first, b", [("clamp", 1.5, 1.5), ("offset", -0.5, 1.5), ("clamp", 1 + 2e-6, 1)])
def test_learned_exponents(rule, first, b):
    plain = network("vgg")
    converted = bk.convert(plain, b=b, learn_b=rule)
    learned = {key: p for key, p in converted.named_parameters() if key.endswith(".b")}
    assert len(learned) == 4 and all(p.item() == pytest.approx(first, abs=1e-12) for p in learned.values())
    assert torch.allclose(converted(six()), bk.convert(plain, b=max(b, 1 + 2e-6))(six()), rtol=1e-6)
    converted(six()).square().sum().backward()
    assert all(p.grad.abs() > 0 for p in learned.values())
    if rule == "clamp":
        for parameter in learned.values():
            parameter.data.fill_(0.5)
        assert torch.allclose(converted(six()), bk.convert(plain, b=1 + 1e-6)(six()), rtol=1e-6)


def test_steps_that_are_left_out():
    plain = network("resnet")
    converted = bk.convert(plain, uncentered=False, activations=False, average_pool=False, pool_logits=False)
    kinds = {type(m) for m in converted.modules()}
    assert nn.BatchNorm2d in kinds and nn.MaxPool2d in kinds and nn.ReLU not in kinds and nn.AvgPool2d not in kinds
    assert isinstance(converted.model.fc, bk.BcosLinear) and type(converted.model) is models.ResNet
    assert all(norm.bias is None for norm in converted.modules() if isinstance(norm, nn.BatchNorm2d))
    vit = bk.convert(network("vit"), activations=False)
    assert not any("GELU" in type(m).__name__ for m in vit.modules())


def test_layers_and_norms_are_served_by_the_kernels():
    report = bk.report(bk.convert(network("vit")))
    assert report.left_alone == 0 and len(report.norms) == 5
    assert [len(report.of(kind)) for kind in ("attention", "gate")] == [2, 2]
    report = bk.report(bk.convert(network("resnet", torch.float32)))
    assert {row.backend for row in report.rows} == {"cpu"} and len(report.norms) == 12
    named = bk.convert(network("resnet"), backend="reference")
    assert {row.backend for row in bk.report(named).layers} == {"reference"}


def test_the_simple_vit_of_bcos():
    """Its first layer sees patches, pixel by pixel; every token has logits; its attention is accelerated."""
    from bcos.models import vit

    kinds = {"linear_layer": nn.Linear, "norm_layer": nn.LayerNorm, "act_layer": nn.GELU, "channels": 3}
    sizes = {"image_size": 32, "patch_size": 8, "num_classes": 7, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 8}
    with pytest.warns(UserWarning, match="entrypoints"):
        plain = vit.SimpleViT(**sizes, **kinds).double().eval()
    same = bk.convert(plain, **SAME, pool_logits=False)
    truth = plain(normalized(images(), "vit"))
    assert (same(six()) - truth).norm() <= 1e-12 * truth.norm()
    converted = bk.convert(plain)
    assert bk.report(converted).of("attention")[0].backend == "torch"
    model = converted.model
    tokens = model.to_patch_embedding(converted.normalize(six()))
    tokens = model.transformer(tokens.flatten(1, 2) + model.positional_embedding(tokens))
    every = torch.stack([model.linear_head(tokens[:, i]) for i in range(16)])
    assert torch.allclose(converted(six()), every.mean(0) - math.log(6), rtol=1e-12)
    assert torch.equal(pickle.loads(pickle.dumps(converted))(six()), converted(six()))
    assert model.to_patch_embedding.rearrage.training  # as each copy of a layer of einops is
    explained = bk.explain(converted, six(), 3).weights
    assert torch.allclose(bk.explain(bk.fold(converted), six(), 3).weights, explained, rtol=1e-12)


@pytest.mark.slow
def test_a_converted_network_is_compiled():
    converted = bk.convert(network("vit", torch.float32))
    x = six(dtype=torch.float32)
    compiled = torch.compile(converted, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), converted(x), rtol=1e-4)


@pytest.mark.slow
def test_an_exported_network_holds_an_operator_for_each_layer_and_each_uncentered_norm():
    converted = bk.convert(network("resnet", torch.float32)).eval()
    program = torch.export.export(converted, (six(dtype=torch.float32),))
    operators = Counter(node.target for node in program.graph.nodes)
    kinds = Counter(type(module).__name__ for module in converted.modules())
    assert operators[torch.ops.bcos_kernels.norm.default] == kinds["BatchNormUncentered2d"] > 0
    assert operators[torch.ops.bcos_kernels.transform.default] == kinds["BcosConv2d"] > 0


def test_fine_tuning_moves_every_parameter():
    converted = bk.convert(network("resnet", torch.float32)).train()
    before = copy.deepcopy(converted.state_dict())
    optimizer = torch.optim.Adam(converted.parameters(), 1e-3)
    loss = nn.functional.binary_cross_entropy_with_logits(converted(six(dtype=torch.float32)), torch.eye(7)[:2])
    loss.backward()
    optimizer.step()
    after = converted.state_dict()
    still = [key for key, value in before.items() if torch.equal(value, after[key])]
    assert still and all(key.endswith("running_mean") for key in still)


# the report


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.norm = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.InstanceNorm2d(4)
        self.own = nn.Parameter(torch.ones(1))
        self.again = self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv2(self.again(self.act(self.norm(self.conv(x))))) * self.own


def test_what_is_not_understood_is_named(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.warns(UserWarning, match=r"convert\(Odd\): modules left alone: 2; see network.report"):
        converted = bk.convert(Odd())
    assert converted.model.again is converted.model.conv2
    report = converted.report
    assert [(row.name, row.outcome) for row in report.rows] == [
        ("(model)", "kept"),
        ("conv", "BcosConv2d"),
        ("act", "left alone"),
        ("norm", "left alone"),
        ("again", "BcosConv2d"),
    ]
    assert [row.reason for row in report.rows if row.reason] == [
        "its own parameters stay: own", "there is no rule for SiLU", "there is no rule for InstanceNorm2d",
    ]  # fmt: skip
    text = f"{report}\n{report.table()}"
    assert "2 modules converted, 1 kept, 2 left alone" in text and "left alone: 1 module of class SiLU" in text
    assert max(map(len, text.splitlines())) <= 80 and repr(report) in f"<Report: {text.splitlines()[0]}>"
    assert json.loads(json.dumps(report.to_dict()))["left_alone"] == 2
    html = report._repr_html_()
    assert "<td>SiLU</td>" in html and html.count("<td>") == html.count("<th>") * len(report.rows)


@pytest.mark.parametrize(
    "module, reason",
    [
        (nn.GELU("tanh"), "there is no rule for a GELU with approximate='tanh'"),
        (nn.MaxPool2d(2, dilation=2), "an average pool has neither dilation nor indices"),
        (nn.MaxPool2d(2, return_indices=True), "an average pool has neither dilation nor indices"),
        (nn.MultiheadAttention(4, 2, dropout=0.5), "there is no rule for an attention with dropout"),
        (nn.MultiheadAttention(4, 2, kdim=3, add_zero_attn=True), "an attention with kdim or vdim, add_zero_attn"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), "there is no rule for an attention with add_bias_kv"),
    ],
)
def test_options_without_a_rule_are_named(module, reason):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), module)
    with pytest.warns(UserWarning, match="modules left alone: 1"):
        (row,) = bk.convert(plain).report.left_alone
    assert row.name == "1" and reason in row.reason


def test_convolutions_that_form_queries_and_keys_stay_plain():
    plain = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 1), qkv=nn.Conv2d(4, 12, 1)))
    with pytest.warns(UserWarning, match="modules left alone: 1"):  # what holds such a layer is an attention
        rows = {row.name: row for row in bk.convert(plain).report.rows}
    assert (rows["qkv"].outcome, rows["qkv"].reason) == ("kept", "it forms queries, keys or values")


def test_the_report_of_a_network_that_is_understood():
    report = bk.convert(network("resnet")).report
    assert not report.left_alone
    lines = str(report).splitlines()
    assert "1 Linear became BcosConv2d" in lines and "1 MaxPool2d became AvgPool2d" in lines
    assert "front of the pooling" in report.table()


def test_a_norm_without_parameters_computes_what_it_did():
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False), nn.ReLU(), nn.Conv2d(5, 4, 1)).double()
    plain(3 + torch.randn(4, 3, 8, 8, dtype=torch.float64))
    found = bk.convert(plain.eval(), **SAME)
    assert torch.allclose(found(six()), plain(normalized(images(), "")), rtol=1e-9)
    assert not found.model[1].bias.requires_grad and plain[1].bias is None
