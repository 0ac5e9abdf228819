"""What the formulas of several ops share, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["FrozenScale", "accumulated", "mapped", "sums_of"]


def sums_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels form sums over values of ``dtype``: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulated(t: Tensor) -> Tensor:
    """The tensor in the dtype in which sums over it are formed: fp32 for half precision, else its own."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def mapped(grad: Tensor, x: Tensor, gradient_map: Tensor) -> Tensor:
    """The gradient that ``grad`` is behind a map ``[4, C]``: ``grad · a + (x - m) · b + c`` at every channel of x."""
    a, b, m, c = gradient_map.view(4, -1, *[1] * (x.dim() - 2))
    return (grad * a + (x - m) * b + c).to(grad.dtype)


class FrozenScale(torch.autograd.Function):
    """y = s·value, whose backward decides whether s is differentiated (late explanation mode).

    In the double backward s stays part of the graph, as model guidance (Rao et al., ICCV 2023) needs it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, s: Tensor, is_frozen: Callable[[], bool]) -> Tensor:
        return s * value

    @staticmethod
    def setup_context(ctx, inputs, output):
        value, s, ctx.is_frozen = inputs
        ctx.save_for_backward(value, s)
        ctx.save_for_forward(value, s)

    @staticmethod
    def jvp(ctx, value_tangent, s_tangent, _):
        value, s = ctx.saved_tensors
        return value_tangent * s if ctx.is_frozen() else value_tangent * s + value * s_tangent

    @staticmethod
    def backward(ctx, grad):
        value, s = ctx.saved_tensors
        return grad * s, None if ctx.is_frozen() else grad * value, None
