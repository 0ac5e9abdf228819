"""Tensors of more than 2³¹ elements: an offset that wraps in 32 bits reads and writes somewhere else."""

import pytest
import torch
from cases import CANDIDATES, Case, error
from on_gpu import run

from bcos_kernels.functional import norm

ROWS = 2**20 + 64  # of 2048 values: the last 64 rows lie beyond 2³¹
IMAGES = 130  # of 64 channels and 512² pixels, 2²⁴ values: the last two lie beyond
LARGE = [
    Case("x_of_linear", (ROWS, 2048), (16, 2048)),
    Case("y_of_linear", (ROWS, 16), (2048, 16)),
    Case("x_of_conv1x1", (IMAGES, 64, 512, 512), (8, 64, 1, 1)),
    Case("x_of_conv3x3", (IMAGES, 64, 512, 512), (8, 64, 3, 3), {"padding": 1}),
    Case("y_of_conv3x3", (IMAGES, 8, 512, 512), (64, 8, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma", "tma-vendor"))
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_more_than_2_to_the_31_elements(case, candidate, force, room):
    """The first and the last rows, alone in having a gradient, are what a call of them alone gives."""
    room(40)
    force(candidate)
    dtype, k = torch.bfloat16, 64 if case.is_linear else 1
    form = torch.contiguous_format if case.is_linear else torch.channels_last
    x = torch.empty(case.x, dtype=dtype, device="cuda", memory_format=form).normal_().requires_grad_()
    weight = torch.randn(case.weight, dtype=dtype, device="cuda", requires_grad=True)
    with torch.no_grad():
        y = case(x, weight)
        assert max(x.numel(), y.numel()) > 2**31
        upward = torch.zeros_like(y)
        del y
        for part in (upward[:k], upward[-k:]):
            part.normal_()
    found = run(case, x, weight, upward)

    def ends(t):
        return torch.cat([t.detach()[:k], t.detach()[-k:]])

    alone = run(case, ends(x).requires_grad_(), weight, ends(upward))
    y, dx, dw = found
    for what, mine, expected in zip(("y", "dx", "dw"), (ends(y), ends(dx), dw), alone, strict=True):
        assert error(mine, expected) < 4 * torch.finfo(dtype).eps, what
    assert torch.count_nonzero(dx[k:-k]) == 0


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("over", ["batch", "group", "position"])
def test_norms_of_more_than_2_to_the_31_elements(over, channels_last, room):
    """y and dx of the first and the last image, alone in having a gradient, are those of the formula in fp32."""
    room(40)
    form, dtype = torch.channels_last if channels_last else torch.contiguous_format, torch.bfloat16
    x = torch.empty(IMAGES, 64, 512, 512, dtype=dtype, device="cuda", memory_format=form).normal_()
    assert x.numel() > 2**31
    with torch.no_grad():
        for image in x:  # of a size of its own
            image.mul_(torch.rand((), device="cuda") + 0.5)
    x.requires_grad_()
    weight, bias = (torch.randn(64, device="cuda") for _ in range(2))
    y, mean, var = norm(
        x, weight, bias, over=over, groups=4 if over == "group" else 1, centered=True, return_statistics=True
    )
    upward = torch.zeros_like(y)
    for part in (upward[:1], upward[-1:]):
        part.normal_()
    (dx,) = torch.autograd.grad(y, x, upward)

    def ends(t):
        return torch.cat([t.detach()[:1], t.detach()[-1:]]).float()

    grouped = (2, 4, 16, 512, 512) if over == "group" else (2, 64, 512, 512)
    axes = {"batch": (0, 2, 3), "group": (2, 3, 4), "position": (1,)}[over]
    values, grads = ends(x).view(grouped), (ends(upward) * weight[:, None, None]).view(grouped)
    if over == "batch":
        of_all = [torch.stack([f(channel) for channel in x.detach().unbind(1)]) for f in (means, squares)]
        assert (mean - of_all[0]).abs().max() < 1e-4 and error(var, of_all[1] - of_all[0] ** 2) < 1e-3
        m, v, count = (*(t.view(1, 64, 1, 1) for t in (mean, var)), IMAGES * 512 * 512)
    else:
        m, v = values.mean(axes, keepdim=True), values.var(axes, unbiased=False, keepdim=True)
        count = values.numel() // m.numel()
    r = (v + 1e-5).rsqrt()
    unit = (values - m) * r
    sums = [t.sum(axes, keepdim=True) / count for t in (grads, grads * unit)]
    exact_dx = (r * (grads - sums[0] - unit * sums[1])).view(2, 64, 512, 512)
    exact_y = unit.view(2, 64, 512, 512) * weight[:, None, None] + bias[:, None, None]
    for what, mine, true in (("y", ends(y), exact_y), ("dx", ends(dx), exact_dx)):
        assert error(mine, true) < 4 * torch.finfo(dtype).eps, what


def means(t):
    return t.mean(dtype=torch.float32)


def squares(t):
    return t.float().square().mean()
