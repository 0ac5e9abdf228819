"""What the GPU tests share: a case on the GPU, its results, and its results in float64."""

from __future__ import annotations

import torch
from cases import Case
from torch import Tensor

__all__ = ["SMALL", "equal", "exact", "run", "tensors"]

SMALL = {
    "conv3x3": Case("conv3x3", (4, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}),
    "conv1x1": Case("conv1x1", (4, 1024, 7, 7), (96, 1024, 1, 1)),
    "stem": Case("stem", (2, 6, 31, 31), (40, 6, 7, 7), {"stride": 2, "padding": 3}),
    "strided_b1.5": Case("strided_b1.5", (2, 40, 15, 13), (72, 40, 3, 3), {"stride": 2, "padding": 1, "b": 1.5}),
    "grouped": Case("grouped", (2, 32, 9, 9), (64, 4, 3, 3), {"padding": 1, "groups": 8}),
    "depthwise": Case("depthwise", (2, 48, 14, 14), (48, 1, 7, 7), {"padding": 3, "groups": 48}),
    "max_out": Case("max_out", (2, 48, 9, 9), (96, 48, 3, 3), {"padding": 1, "max_out": 2}),
    "linear": Case("linear", (197, 384), (200, 384)),
    "linear_b2.5": Case("linear_b2.5", (65, 130), (33, 130), {"b": 2.5}),
}
"""Layers with several steps in every loop and partial tiles, quick on a GPU."""


def tensors(case: Case, dtype: torch.dtype = torch.bfloat16, seed: int = 0, channels_last: bool = True) -> list[Tensor]:
    """``[x, weight]`` on the GPU, each requiring its gradient."""
    return [t.detach().cuda().requires_grad_() for t in case.inputs(dtype, seed, channels_last)[:2]]


def run(case: Case, x: Tensor, weight: Tensor, upward: Tensor | None = None, **options) -> tuple[Tensor, ...]:
    """(y, dx, dw) with ``upward`` as the gradient of y, ones where it is None."""
    y = case(x, weight, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), torch.ones_like(y) if upward is None else upward)


def exact(case: Case, x: Tensor, weight: Tensor, upward: Tensor | None = None) -> tuple[Tensor, ...]:
    """The same of the eager formula in float64 on the CPU."""
    wide = [t.detach().cpu().double().requires_grad_() for t in (x, weight)]
    y = case.naive(*wide)
    upward = torch.ones_like(y) if upward is None else upward.cpu().double()
    return y.detach(), *torch.autograd.grad(y, wide, upward)


def equal(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Whether all bits agree."""
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
