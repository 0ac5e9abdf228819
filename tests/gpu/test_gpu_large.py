"""Tensors of more than 2³¹ elements: an offset that wraps in 32 bits reads and writes somewhere else."""

import pytest
import torch
from cases import CANDIDATES, Case, error
from on_gpu import run

ROWS = 2**20 + 64  # of 2048 values: the last 64 rows lie beyond 2³¹
IMAGES = 130  # of 64 channels and 512² pixels, 2²⁴ values: the last two lie beyond
LARGE = [
    Case("x_of_linear", (ROWS, 2048), (16, 2048)),
    Case("y_of_linear", (ROWS, 16), (2048, 16)),
    Case("x_of_conv1x1", (IMAGES, 64, 512, 512), (8, 64, 1, 1)),
    Case("x_of_conv3x3", (IMAGES, 64, 512, 512), (8, 64, 3, 3), {"padding": 1}),
    Case("y_of_conv3x3", (IMAGES, 8, 512, 512), (64, 8, 3, 3), {"padding": 1}),
]


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma"))
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
