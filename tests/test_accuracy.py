"""Sums over many channels: errors against float64, never worse than the reference's own, in both memory formats."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from cases import Budget, bcos, error
from cases import Case as Layer
from cpu_oracle import LINEAR, Case, check
from second_checks import MODES, outcome, published
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels import _C

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def normal(*shape, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [64, 256, 1024, 2048])
@pytest.mark.parametrize("layout", FORMATS)
def test_patch_norm(layout, channels, kernel):
    padding = kernel // 2
    layer = bcos.modules.BcosConv2d(channels, 1, kernel, padding=padding)
    ours, theirs = [], []
    for seed in range(5):
        x = normal(2, channels, 16, 16, seed=seed).contiguous(memory_format=FORMATS[layout])
        pixels = x.double().square().sum(1, keepdim=True)
        truth = (F.conv2d(pixels, pixels.new_ones(1, 1, kernel, kernel), padding=padding) + 1e-6).sqrt()
        filters = torch.ones(1, channels, kernel, kernel)
        found = _C.transform_forward(x, filters, None, None, Case(padding=(padding, padding)).spec)[1]
        ours.append(error(found, truth, 0.0))
        theirs.append(error(layer.calc_patch_norms(x), truth, 0.0))
    assert median(ours) <= 1.1 * median(theirs)


@pytest.mark.parametrize("layout", FORMATS)
def test_gradient_of_the_norm(layout):
    """The part of dx that goes through the norm sums the gradients of all outputs."""
    budget = Budget()
    for seed in range(5):
        x = normal(2, 8, 16, 16, seed=seed).abs().contiguous(memory_format=FORMATS[layout])
        gradient = normal(2, 1024, 16, 16, seed=seed + 99).abs()
        layer = bcos.modules.BcosConv2d(8, 1024, 1)
        layer.linear.weight.data = 1 + normal(1024, 8, 1, 1, seed=seed + 9).abs()
        results = [
            through_the_norm(module, x.to(dtype), gradient.to(dtype))
            for module, dtype in (
                (bk.accelerate(copy.deepcopy(layer)), torch.float32),
                (layer, torch.float32),
                (copy.deepcopy(layer).double(), torch.float64),
            )
        ]
        budget.add("dx", *results)
    budget.check()


def through_the_norm(layer, x, gradient):
    """dx less twice the explanation, which is what goes through the linear output at b = 2."""
    x.requires_grad_()
    (whole,) = grad(layer(x), x, gradient)
    layer.set_explanation_mode(True)
    (frozen,) = grad(layer(x), x, gradient)
    layer.set_explanation_mode(False)
    return whole - 2 * frozen


def add_training(budget, layer, x, gradient):
    """Adds y, dx and dw of a layer to the budget: accelerated, as it is, and in float64."""
    found = []
    for module, dtype in (
        (bk.accelerate(copy.deepcopy(layer)), torch.float32),
        (layer, torch.float32),
        (copy.deepcopy(layer).double(), torch.float64),
    ):
        z = x.to(dtype).requires_grad_()
        y = module(z)
        found.append((y.detach(), *grad(y, (z, module.linear.weight), gradient.to(dtype))))
    for what, *results in zip(("y", "dx", "dw"), *found, strict=True):
        budget.add(what, *results)


@pytest.mark.parametrize("rows", [1, 3, 4, 9, 15, 16, 33, 64, 65])
def test_few_rows(rows):
    """Linear layers of few rows, whose products, norms and gradients are formed filter by filter."""
    budget = Budget()
    for seed in range(5):
        x, gradient = normal(rows, 391, seed=seed), normal(rows, 70, seed=seed + 99)
        torch.manual_seed(seed)
        layer = bcos.modules.BcosLinear(391, 70)
        add_training(budget, layer, x, gradient)
    budget.check()
    for options in ({"unit": False}, {"bias": True, "max_out": 2}, {"b": 1.5}, {"dtype": torch.float64}):
        check(replace(LINEAR, batch=rows, channels=391, outputs=70, **options))


@pytest.mark.parametrize("rows", [9, 16, 40, 64])
@pytest.mark.parametrize("filters", [1, 2, 8, 15, 16])
def test_few_rows_of_equal_values(rows, filters):
    """Roundings of equal terms add up: the sums must be as short as the vendor's."""
    budget = Budget()
    for seed in range(15):
        torch.manual_seed(seed)
        layer = bcos.modules.BcosLinear(128, filters)
        layer.linear.weight.data[:] = layer.linear.weight[:1, :1]
        x = normal(rows, 1, seed=seed).expand(-1, 128).contiguous()
        add_training(budget, layer, x, normal(rows, filters, seed=seed + 99))
    del budget.rows["dw"]  # 0 by cancellation
    budget.check()


@pytest.mark.parametrize("size, filters", [(64, 3), (192, 1), (192, 8), (192, 64), (1024, 3)])
def test_sums_of_products(size, filters):
    """Linear layers of many rows: PyTorch splits the sums of few filters into more parts than those of many."""
    budget = Budget()
    for seed in range(20):
        torch.manual_seed(seed)
        x, gradient = normal(256, size, seed=seed).abs(), normal(256, filters, seed=seed + 99)
        add_training(budget, bcos.modules.BcosLinear(size, filters), x, gradient)
    budget.check()


@pytest.mark.parametrize("make", [
    lambda: bcos.modules.BcosConv2d(12, 12, 1, groups=12), lambda: bcos.modules.BcosConv2d(1, 12, 1, b=1.5),
    lambda: bcos.modules.BcosConv2d(6, 6, 1, groups=6, max_out=2),
])  # fmt: skip
def test_unit_filters_of_one_value_are_exact(make):
    """They are ±1, so that outputs of fp32 hold the products of bfloat16 without a rounding."""
    budget = Budget()
    for seed in range(5):
        torch.manual_seed(seed)
        layer = make()
        x = normal(2, layer.in_channels, 6, 5, seed=seed).bfloat16().float()
        found = []
        for module, cast in (
            (bk.accelerate(copy.deepcopy(layer)), True),
            (layer, True),
            (copy.deepcopy(layer).double(), False),
        ):
            z = x.to(module.linear.weight.dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                y = module(z)
            (dx,) = grad(y, z, normal(*y.shape, seed=seed + 99).to(y.dtype))
            found.append((y.detach(), dx))
        for what, *results in zip(("y", "dx"), *found, strict=True):
            assert results[0].dtype == torch.float32
            budget.add(what, *results)
    budget.check()


@pytest.mark.parametrize("b", [1, 1.5, 2, torch.tensor(2.0), torch.tensor([1.5])], ids=str)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_for_dilated_patches_under_autocast(b, low, dtype):
    """Its norm is a convolution, which autocast computes in half precision, and so is its output."""
    budget = Budget()
    for seed in range(9):
        torch.manual_seed(seed)
        layer = bcos.modules.BcosConv2d(6, 4, 3, dilation=2, padding=2, b=b)
        x, found = normal(2, 6, 9, 8, seed=seed).to(dtype), []
        ours = bk.accelerate(copy.deepcopy(layer))
        for module, cast in ((ours, True), (layer, True), (copy.deepcopy(layer).double(), False)):
            z = (x if cast else x.double()).requires_grad_()
            with torch.autocast("cpu", low, enabled=cast):
                y = [module(z) for _ in range(2)][1]  # whose dtype is found once, and kept
            found.append([y, *grad(y, (z, module.linear.weight), normal(*y.shape, seed=seed + 99).to(y.dtype))])
        assert bk.report(ours).accelerated == 1
        for what, *results in zip(("y", "dx", "dw"), *found, strict=True):
            assert results[0].dtype == results[1].dtype
            budget.add(what, *results, low)
    budget.check()


@pytest.mark.parametrize("make", [
    lambda: bcos.modules.BcosLinear(33, 8, b=1), lambda: bcos.modules.BcosConv2d(33, 24, 3, padding=1, b=1),
    lambda: bcos.modules.BcosConv2d(32, 24, b=1), lambda: bcos.modules.BcosConv2d(32, 24, 3, b=1, groups=4),
])  # fmt: skip
def test_plain_gradients_under_autocast(make):
    """At b = 1 a gradient of bf16 is not rounded again, and unit filters are rounded once, as in the reference."""
    errors = {}
    for seed in range(7):
        torch.manual_seed(seed)
        layer = make()
        shape = (64, 33) if isinstance(layer, bcos.modules.BcosLinear) else (2, layer.in_channels, 6, 5)
        found = []
        for module, cast in (
            (bk.accelerate(copy.deepcopy(layer)), True),
            (layer, True),
            (copy.deepcopy(layer).double(), False),
        ):
            weight = module.linear.weight
            x = normal(*shape, seed=seed).to(weight.dtype).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                y = module(x)
            gradient = normal(*y.shape, seed=seed + 99).bfloat16().to(y.dtype).requires_grad_()
            dx, dw = grad(y, (x, weight), gradient, create_graph=True)
            second = grad(dx, (gradient, weight), normal(*x.shape, seed=seed + 9).to(x.dtype))
            found.append([t.detach() for t in (y, dx, dw, *second)])
        for what, ours, theirs, truth in zip(("y", "dx", "dw", "second dg", "second dw"), *found, strict=True):
            assert ours.dtype == theirs.dtype
            errors.setdefault(what, []).append((error(ours, truth), error(theirs, truth)))
    for what, rows in errors.items():
        ours, theirs = map(median, zip(*rows, strict=True))
        assert ours <= 1.1 * theirs, what  # without the unit in the last place, which is more than either error


@pytest.mark.parametrize("case", [
    Layer("linear", (6000, 8), (8, 8), {}, True),
    Layer("max_out", (6000, 8), (8, 8), {"max_out": 2}, True),
    Layer("planes", (4, 16, 24, 24), (24, 16, 1, 1), {"max_out": 2}, True),
    Layer("depthwise", (2, 16, 28, 28), (16, 1, 7, 7), {"padding": 3, "groups": 16}, True),
], ids=lambda case: case.name)  # fmt: skip
def test_gradient_of_a_bias_sums_many_positions(case):
    budget = Budget()
    for seed in range(5):
        inputs = [t.detach().abs().requires_grad_() for t in case.inputs(torch.float32, seed)]
        exact = [t.detach().double().requires_grad_() for t in inputs]
        y = case.naive(*exact)
        upward = normal(*y.shape, seed=seed + 99).abs()
        (truth,) = grad(y, exact[2], upward.double())
        ours, theirs = (grad(y, inputs[2], upward)[0] for y in (case(*inputs), case.naive(*inputs)))
        budget.add("dbias", ours, theirs, truth)
    budget.check()


@pytest.mark.parametrize("detach", [False, True], ids=["training", "frozen"])
@pytest.mark.parametrize("b", [1.25, 2, 2.5])
def test_bias_beside_the_norm_of_the_weight(b, detach):
    """Where a patch is padding alone, l is the bias and the gradient of a filter that of ‖w‖: 0 in a frozen scale."""
    options = {"padding": 4, "weight_in_norm": True, "normalize_weights": False, "b": b, "detach": detach}
    case, budget = Layer("padded", (1, 4, 2, 2), (64, 4, 1, 1), options, bias=True), Budget()
    for seed in range(9):
        inputs = case.inputs(torch.float32, seed)
        exact = [t.detach().double().requires_grad_() for t in inputs]
        y = case.naive(*exact)
        upward = normal(*y.shape, seed=seed + 99)
        truth = y, *grad(y, exact, upward.double())
        ours, theirs = ((y, *grad(y, inputs, upward)) for y in (case(*inputs), case.naive(*inputs)))
        for what, *results in zip(("y", "dx", "dw", "dbias"), ours, theirs, truth, strict=True):
            budget.add(what, *results)
    budget.check()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [
    {"b": 2}, {"b": 2.5, "groups": 2}, {"b": 2, "exact_two": False, "normalize_weights": False},
], ids=str)  # fmt: skip
def test_modes_of_a_bias_beside_the_norm_of_the_weight(options, mode):
    case = Layer("biased", (2, 4, 5, 5), (6, 4 // options.get("groups", 1), 3, 3), {}, bias=True)
    named = dict(zip(("x", "weight", "bias"), case.inputs(torch.float64), strict=True))
    options = {"weight_in_norm": True, "padding": 1, **options}
    found, expected = (
        outcome(partial(function, **options), named, mode, True, normal(2, 6, 5, 5, seed=1))
        for function in (bk.functional.bcos_conv2d, published)
    )
    assert all(error(found[what], exact) < 1e-11 for what, exact in expected.items())


@pytest.mark.parametrize("channels, size", [(512, 2), (256, 4)])
def test_two_nearly_equal_images(channels, size):
    """The last layers of a network trained on two small images: batch norm hands them nearly opposite gradients.

    Each such norm multiplies what rounding leaves of the difference of both images, in the reference as well.
    """
    budget = Budget()
    for seed in range(25):
        x = 0.3 * normal(1, channels, size, size, seed=seed) + 1e-3 * normal(2, channels, size, size, seed=seed + 50)
        gradient = normal(1, 128, size, size, seed=seed + 99)
        gradient = torch.cat([gradient, -gradient]) + 1e-3 * normal(2, 128, size, size, seed=seed + 150)
        torch.manual_seed(seed)
        layer = bcos.modules.BcosConv2d(channels, 128, 1)
        add_training(budget, layer, x, gradient)
    budget.check()


def gradients(model, x):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
    dx, *dw = grad(loss, (x, *model.parameters()))
    return {"dx": dx, "dw": torch.cat([g.flatten() for g in dw])}


@pytest.mark.slow
def test_densenet():
    """Contiguous images through 121 layers of up to 1024 channels, with fresh weights in eval mode.

    Batch statistics would let rounding errors grow from layer to layer until they hide whose they are.
    """
    errors = []
    for seed in range(5):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = bcos.pretrained.densenet121(pretrained=False).eval()
        rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        x = torch.cat([rgb, 1 - rgb], 1)
        truth = gradients(copy.deepcopy(model).double(), x.double())
        ours, theirs = gradients(bk.accelerate(copy.deepcopy(model)), x), gradients(model, x)
        errors.append([(error(ours[k], truth[k], 0.0), error(theirs[k], truth[k], 0.0)) for k in ("dx", "dw")])
    for what, rows in zip(("dx", "dw"), zip(*errors, strict=True), strict=True):
        mine, yours = (median(column) for column in zip(*rows, strict=True))
        assert mine <= 1.1 * yours, (what, mine, yours)
