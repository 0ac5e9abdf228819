"""Numbers near the ends of a type's range: wherever the reference is finite, so are the kernels, with its values."""

from __future__ import annotations

import copy

import pytest
import tiny_rows
import torch
from cases import Budget, bcos, error
from tiny_rows import derivatives
from torch.autograd import grad

import bcos_kernels as bk
from bcos_kernels.functional import bcos_conv2d, bcos_linear
from bcos_kernels.transform import TRANSFORM, traffic
from bcos_kernels.transform.call import of_shapes

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
LAYERS = {
    "linear": lambda b: bcos.modules.BcosLinear(24, 20, b=b),
    "linear max_out": lambda b: bcos.modules.BcosLinear(24, 20, b=b, max_out=2),
    "conv1x1": lambda b: bcos.modules.BcosConv2d(24, 20, b=b),
    "conv3x3": lambda b: bcos.modules.BcosConv2d(24, 20, 3, padding=1, b=b),
    "max_out": lambda b: bcos.modules.BcosConv2d(24, 20, 3, padding=1, b=b, max_out=2),
    "grouped": lambda b: bcos.modules.BcosConv2d(24, 20, 3, padding=1, b=b, groups=4),
    "depthwise": lambda b: bcos.modules.BcosConv2d(24, 24, 3, padding=1, b=b, groups=24),
}


def results(layer, x, gradient):
    """y, dx, dw and explanation of a layer."""
    x = x.clone().requires_grad_()
    y = layer(x)
    gradient = gradient[tuple(map(slice, y.shape))].to(y.dtype)
    dx, dw = grad(y, (x, layer.linear.weight), gradient)
    layer.set_explanation_mode(True)
    (explanation,) = grad(layer(x), x, gradient)
    layer.set_explanation_mode(False)
    return {"y": y.detach(), "dx": dx, "dw": dw, "explanation": explanation}


def same(found, expected, dtype):
    """Where ``expected`` is finite, ``found`` is, and equal up to rounding and to numbers below the normal ones."""
    finite = expected.isfinite()
    if finite.any():
        found, expected = found[finite].double(), expected[finite].double()
        assert bool(found.isfinite().all())
        allowed = {F32: 2e-5, BF16: 5e-2}[dtype] * expected.abs().max() + torch.finfo(dtype).tiny
        assert (found - expected).abs().max() <= allowed


def compare(name, b, dtype, layout, change, size=6):
    """The layer and its accelerated twin on the same numbers, the second of both images compared apart."""
    if dtype == BF16 and "max_out" in name:
        dtype = F32  # in bf16 rounding decides which of two close filters wins
    torch.manual_seed(0)
    layer = LAYERS[name](b).to(dtype)
    x, gradient = torch.randn(2, 24, size, size), torch.randn(2, 40, size, size)
    change(x, layer)
    if "linear" in name:
        x, gradient = x.permute(0, 2, 3, 1).reshape(-1, 24), gradient.permute(0, 2, 3, 1).reshape(-1, 40)
    x = x.to(dtype).contiguous(memory_format=FORMATS[layout] if x.dim() == 4 else torch.contiguous_format)
    theirs = results(layer, x, gradient)
    ours = results(bk.accelerate(layer), x, gradient)
    assert bk.report(layer).accelerated == 1
    for what, expected in theirs.items():
        parts = (slice(None),) if what == "dw" else (slice(0, len(expected) // 2), slice(len(expected) // 2, None))
        for part in parts:
            same(ours[what][part], expected[part], dtype)
    return theirs


@pytest.mark.parametrize("scale", [1e-19, 1e-22, 1e-30])
@pytest.mark.parametrize("name", LAYERS)
def test_tiny_inputs(name, scale):
    """At b = 2 y underflows before its slope |l|/n does: gradients need l, not y."""
    for layout, dtype, b in [
        ("nchw", F32, 1),
        ("nchw", F32, 1.5),
        ("nchw", F32, 2),
        ("nhwc", F32, 2),
        ("nhwc", BF16, 2),
    ]:
        theirs = compare(name, b, dtype, layout, lambda x, layer: x.mul_(scale))
        assert theirs["dx"].any() and theirs["explanation"].any()


@pytest.mark.parametrize("layout", FORMATS)
def test_a_patch_that_is_nearly_orthogonal_to_the_filters(layout):
    """y underflows where no value of x is so small that it must."""

    def change(x, layer):
        layer.linear.weight.data.zero_()[:, :4] = 1
        x.zero_()[:, 0] = 2**-67
        x[:, 1] = -(2**-67) * (1 - 2**-13)

    assert compare("conv1x1", 2, F32, layout, change)["explanation"].any()


SMALL = {
    "linear": (lambda: bcos.modules.BcosLinear(1024, 8), (20, 1024), 3e-4),
    "conv": (lambda: bcos.modules.BcosConv2d(64, 32, 3, padding=1), (2, 64, 9, 9), 1e-3),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_outputs_in_fp16(name):
    """Outputs below 6e-5 have lost digits in fp16, and those below 3e-8 are 0: gradients need l, not y."""
    make, shape, scale = SMALL[name]
    budget = Budget()
    for seed in range(5):
        torch.manual_seed(seed)
        layer, x = make().half(), torch.randn(shape).mul_(scale).half()
        gradient = torch.randn(shape[0], 40, *shape[2:]).half()
        truth = results(copy.deepcopy(layer).double(), x.double(), gradient)
        theirs = results(layer, x, gradient)
        ours = results(bk.accelerate(layer), x, gradient)
        for what, found in ours.items():
            budget.add(what, found, theirs[what], truth[what])
    budget.check()


@pytest.mark.parametrize(
    "options, saved",
    [
        ({"dtype": BF16}, "y"),
        ({"dtype": F16}, "l"),
        ({"dtype": F16, "out_dtype": F32}, "y"),
        ({"dtype": F16, "b": 1.0}, ""),
        ({"dtype": F16, "exact_two": False}, "l"),
        ({"dtype": BF16, "b": 1.5}, "l"),
    ],
    ids=str,
)
def test_what_a_backward_reads(options, saved):
    """On every device, and what is said of it: to pairs, to the cost model and by the operator."""
    call = of_shapes((2, 8, 5, 5), (4, 8, 1, 1), **options)
    assert call.spec.saves_output == call.takes_gradient_map == (saved == "y")
    assert call.saves_linear == (saved == "l")
    assert traffic.Sizes(call).saved == (200 * call.dtype.itemsize if saved == "l" else 0)
    inputs, _ = call.example(torch.device("cpu"))
    found = TRANSFORM.forward(inputs, call, "cpu")
    assert [t.dtype for t in found[:3:2]] == [call.out_dtype] * 2
    assert found[2].shape == (found[0].shape if saved == "l" else (0,))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_tiny_beside_ordinary_and_zero_patches(name, layout):
    """Each patch has its own size: one image is tiny, the other ordinary with patches of zeros."""

    def change(x, layer):
        x[0] *= 1e-28
        x[1, :, :4] = 0

    compare(name, 2, F32, layout, change)


@pytest.mark.parametrize("value", [1e19, 3e38, -3.4e38])
@pytest.mark.parametrize("name", LAYERS)
def test_one_huge_input(name, value):
    """Filters of length above 1 must not overflow before they are normalised."""

    def change(x, layer):
        layer.linear.weight.data *= 40
        x[1, 2, 3, 4] = value

    for b in (1, 1.5, 2, 2.5):
        compare(name, b, F32, "nchw", change)
    for layout, dtype, b in [("nhwc", F32, 2), ("nhwc", F32, 1), ("nhwc", BF16, 2)]:
        compare(name, b, dtype, layout, change)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", LAYERS)
def test_an_image_whose_products_are_not_finite_leaves_the_others_alone(name, layout, value):
    """What its outputs are formed of again would round the others' once more."""
    for dtype, b in [(F32, 2), (F32, 1.5), (BF16, 2), (BF16, 1)]:
        torch.manual_seed(0)
        layer = bk.accelerate(LAYERS[name](b).to(dtype))
        layer.linear.weight.data *= 40
        x, changed = torch.randn(2, 3, 24, 5, 5).to(dtype)
        changed[0] = x[0]
        changed[1:, 2, 3, 4] = value
        found = []
        for images in (x, changed):
            if "linear" in name:
                images = images.permute(0, 2, 3, 1).reshape(-1, 24)
            else:
                images = images.contiguous(memory_format=FORMATS[layout])
            images.requires_grad_()
            y = layer(images)
            (dx,) = grad(y, images, torch.ones_like(y))
            found.append([t[: len(t) // 3] for t in (y, dx)])
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ["linear", "conv1x1"])
def test_tiles_of_large_calls(name):
    """Many rows take the tiled products."""

    def change(x, layer):
        layer.linear.weight.data *= 40
        x[1, 2, 3, 4] = 3e38

    compare(name, 2, F32, "nhwc", change, size=40)
    compare(name, 2, F32, "nhwc", lambda x, layer: x.mul_(1e-30), size=40)


@pytest.mark.parametrize("name", LAYERS)
def test_huge_gradient_of_the_weight(name):
    """The projection of dw onto its filter must not overflow where the reference's does not."""

    def change(x, layer):
        layer.linear.weight.data *= 1e3
        x *= 1e36

    compare(name, 1, F32, "nchw", change)


@pytest.mark.parametrize("mode", tiny_rows.MODES)
@pytest.mark.parametrize("scale", tiny_rows.SCALES)
@pytest.mark.parametrize("b", [1.5, 2, 3])
def test_tiny_rows_beside_a_bias(b, scale, mode):
    tiny_rows.check(b, scale, mode, F32, "cpu", "cpu")


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("b", [1.5, 2])
@pytest.mark.parametrize("groups, size, max_out", [(1, 1, 1), (1, 3, 1), (1, 3, 2), (4, 3, 1), (24, 3, 1)])
def test_tiny_patches_beside_a_bias(groups, size, max_out, b, dtype):
    """Without an epsilon in the root of n a convolution is like a linear layer."""
    options = {"padding": size // 2, "groups": groups, "max_out": max_out, "b": b, "norm_eps": (0.0, 1e-12)}
    for layout in FORMATS.values():
        x, direction = torch.randn(2, 2, 24, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = (x * 1e-15).contiguous(memory_format=layout)
        weight, bias = torch.randn(24 * max_out, 24 // groups, size, size).to(dtype), torch.randn(24 * max_out)
        tensors = x, weight, bias.to(dtype), torch.randn(2, 24, 5, 5).to(dtype), direction
        truth, found = (
            derivatives(lambda *t: bcos_conv2d(*t, backend=backend, **options), *tensors, to)  # noqa: B023
            for backend, to in (("reference", torch.float64), ("cpu", dtype))
        )
        for what in ("y", "dx", "dw", "dbias", "ddw", "ddbias"):
            assert error(found[what], truth[what]) < {F32: 1e-6, BF16: 2e-2}[dtype], what


@pytest.mark.parametrize("scale", [1e-5, 1e-12, 1e-15, 0])
def test_tiny_rows_without_a_bias_stay_in_fp32(scale):
    """Their gradients lose nothing there, and double would have a price. The other rows' bits show which it was."""
    rows, weight, gradient = torch.randn(9, 24), torch.randn(20, 24), torch.randn(9, 20)
    found = []
    for factor in (1, scale):
        x = torch.cat([rows[:8], rows[8:] * factor]).requires_grad_()
        found.append(grad(bcos_linear(x, weight, backend="cpu"), x, gradient)[0])
    assert torch.equal(found[0][:8], found[1][:8]) and found[1].isfinite().all()
