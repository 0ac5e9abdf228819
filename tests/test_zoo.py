"""The zoo of ``bcos.models.pretrained``, random weights: logits, gradients, explanations, second order, training."""

import copy
import math
import warnings
from statistics import mean, stdev

import pytest
import torch
from cases import bcos, error
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.cli.bench.contenders import WORST
from bcos_kernels.cli.bench.models import settled, signalling
from bcos_kernels.cli.measure import keep_pages_warm, release_pages

FAMILIES = {
    "resnet18": 8, "resnext50_32x4d": 8, "densenet121": 16, "vgg11_bnu": 8, "convnext_tiny": 8, "convnext_tiny_bnu": 8,
    "simple_vit_ti_patch16_224": 8, "vitc_ti_patch1_14": 8,
}  # fmt: skip
"""How many images tell the accuracy of a network; DenseNet's errors differ most from image to image."""
ENTRIES = [name for name in bcos.pretrained.list_available() if not name.startswith("standard")]
TWINS = {"resnet101": "resnet50", "resnet152": "resnet50", "densenet121_long": "densenet121"}
"""Entry point -> another one whose network differs by the number of equal blocks or not at all."""


@pytest.fixture(autouse=True)
def _pages_kept():
    """Within a test malloc keeps freed pages: to get those of large gradients from the system anew, again and again,
    took a quarter of the time. Of all whole networks together they would be too many."""
    keep_pages_warm()
    yield
    release_pages()


def build(name: str, dtype=torch.float32, size: int = 64, short: bool = False):
    """A model of the zoo in eval mode, its batch statistics set on noise: without them B-cos signals fade to zero.

    So they do in VGG's classifier, which has no norms: its filters are patches of what they get. It would have a
    hundred million parameters, and has a twelfth of them: the same layers with fewer filters. The blocks of a ConvNeXt
    count in full: they start with a factor of 1e-6, behind which no error of theirs would show. With ``short`` two of
    equal blocks in a row are left: each layer that there is occurs, as wide as it is.
    """
    torch.manual_seed(len(name))
    model = untrained(name)
    if "vgg" in name:
        options = [(512, 256, 7, 1, 3), (256, 256), (256, 1000)]
        wide = model.classifier
        model.classifier = torch.nn.Sequential(*(type(wide[0])(*each, scale_fact=1000) for each in options))
        assert [layer.kernel_size for layer in model.classifier] == [layer.kernel_size for layer in wide]
    if short:
        shorten(model)
    model = model.to(dtype)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif label.endswith("layer_scale"):
                parameter.fill_(1)
    (signalling if "vgg" in name else settled)(model, image(size, dtype, batch=4, seed=9))
    return model.eval()


def untrained(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(bcos.pretrained, name)(pretrained=False)


def shorten(model) -> None:
    """Removes the third and later ones of equal blocks in a row."""
    for row in [part for part in model.modules() if isinstance(part, torch.nn.Sequential)]:
        blocks = [(name, [(type(m), m.extra_repr()) for m in block.modules()]) for name, block in row.named_children()]
        for (_, one), (_, two), (name, three) in zip(blocks, blocks[1:], blocks[2:], strict=False):
            if one == two == three:
                delattr(row, name)


def image(size: int, dtype=torch.float32, batch: int = 1, seed: int = 0):
    rgb = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([rgb, 1 - rgb], 1).to(dtype)


def logits_gradients_explanation(model, x):
    """``(logits, parameter gradients as one vector, explanation of the largest logit)``."""
    x = x.clone().requires_grad_()
    logits = model(x)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(x)))
    gradients = torch.cat([g.flatten() for g in grad(loss, [p for p in model.parameters() if p.requires_grad])])
    with model.explanation_mode():
        (explanation,) = grad(model(x).max(1).values.sum(), x)
    return logits.detach(), gradients, explanation


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_family_in_fp32(name):
    """The error against float64 is at most 1.1 times the reference's, in the geometric mean over images of 64².

    A network amplifies each rounding, so that on one image either error can be three times the other. The mean of n
    logarithms is therefore known to its standard error alone, and two of these are allowed. A third of equal blocks
    would bring time and roundings of the same kind, behind which those of a faulty layer would show less.
    """
    reference = build(name, short=True)
    exact = copy.deepcopy(reference).double()
    accelerated = bk.accelerate(copy.deepcopy(reference))
    assert bk.report(accelerated).accelerated > 0
    errors = []
    for seed in range(FAMILIES[name]):
        x = image(64, seed=seed)
        truth = logits_gradients_explanation(exact, x.double())
        ours, theirs = (logits_gradients_explanation(m, x) for m in (accelerated, reference))
        errors.append([(error(a, t, 0.0), error(b, t, 0.0)) for a, b, t in zip(ours, theirs, truth, strict=True)])
    for i, what in enumerate(("logits", "parameter gradients", "explanation")):
        found = [run[i] for run in errors]
        assert max(yours for _, yours in found) < WORST, f"{what}: zeros would pass beside such errors: {found}"
        ratios = [math.log(mine / (1.1 * yours + torch.finfo(torch.float32).eps)) for mine, yours in found]
        assert mean(ratios) <= 2 * stdev(ratios) / len(ratios) ** 0.5, (what, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in TWINS])
def test_every_entry_point_in_float64(name):
    """Each model, accelerated: in float64 logits, parameter gradients and explanation equal the reference's.

    A block that is the same as two before it adds time alone: in float64 an error in one of its layers shows already.
    """
    model = build(name, torch.float64, size=32, short=True)
    x = image(32, torch.float64)
    theirs = logits_gradients_explanation(model, x)
    ours = logits_gradients_explanation(bk.accelerate(model), x)
    for mine, yours in zip(ours, theirs, strict=True):
        assert error(mine, yours, 0.0) < 1e-9


def test_a_twin_is_the_same_network_apart_from_equal_blocks():
    for name, other in TWINS.items():
        with torch.device("meta"):
            twin, network = untrained(name), untrained(other)
        for model in (twin, network):
            shorten(model)
        assert repr(twin) == repr(network)


def test_standard_networks_are_left_alone_but_for_their_attentions():
    """Those have the same code as the attentions of B-cos networks, and an explanation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = bcos.pretrained.standard_simple_vit_ti_patch16_224(pretrained=False)
        classes = [type(m) for m in model.modules()]
        report = bk.report(bk.accelerate(model))
    assert {row.kind for row in report.rows} == {"attention"} and report.accelerated == 0
    changed = [a for a, m in zip(classes, model.modules(), strict=True) if type(m) is not a]
    assert {a.__name__ for a in changed} == {"Attention"} and len(changed) == len(report.rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_second_order_of_an_explanation_loss(name):
    """Training on explanations: parameter gradients of a loss on the contribution map, in float64."""
    model = build(name, torch.float64, short=True)
    x = image(64, torch.float64, batch=2)
    mask = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(model):
        sample = x.clone().requires_grad_()
        with model.explanation_mode():
            logits = model(sample)
            (explanation,) = grad(logits.max(1).values.sum(), sample, create_graph=True)
        loss = ((explanation * sample).sum(1, keepdim=True) * mask).abs().sum() + logits.logsumexp(1).sum()
        return torch.cat(
            [g.flatten() for g in grad(loss, list(model.parameters()), allow_unused=True) if g is not None]
        )

    theirs = gradients(model)
    assert theirs.abs().max() > 1e-6
    assert error(gradients(bk.accelerate(model)), theirs, 0.0) < 1e-8


def test_training_runs_agree_step_by_step():
    """Fifty optimiser steps from one seed in float64: losses and parameters are those of the reference network."""

    def run(accelerate: bool):
        torch.manual_seed(0)
        layers = bcos.modules
        model = layers.BcosSequential(
            layers.BcosConv2d(6, 16, 3, padding=1),
            layers.norms.BatchNormUncentered2d(16),
            layers.BcosConv2d(16, 16, 3, stride=2, padding=1, b=1.5),
            layers.BcosConv2d(16, 24, 3, padding=1, max_out=2),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            layers.BcosLinear(24, 5),
        ).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        if accelerate:
            bk.accelerate(model)
        losses = []
        for step in range(50):
            x, target = image(16, torch.float64, batch=8, seed=step), torch.arange(8) % 5
            loss = torch.nn.functional.cross_entropy(20 * model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses), torch.cat([p.detach().flatten() for p in model.parameters()])

    (our_losses, ours), (their_losses, theirs) = run(True), run(False)
    assert their_losses[-1] < their_losses[0] - 0.1
    assert (our_losses - their_losses).abs().max() < 1e-8
    assert error(ours, theirs, 0.0) < 1e-7
