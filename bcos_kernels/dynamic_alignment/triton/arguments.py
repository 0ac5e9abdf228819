"""The arguments that kernels take from a call."""

from __future__ import annotations

from torch import Tensor

from ..call import Call

__all__ = ["by_pixel", "precision", "wide_precision", "window"]


def window(call: Call) -> dict[str, int]:
    """The constants of the window."""
    s = call.spec
    return dict(zip(("KH", "KW", "SH", "SW", "PH", "PW"), (*s.kernel, *s.stride, *s.padding), strict=True))


def precision(call: Call) -> str:
    """The precision of a product of fp32 tiles, as Triton names it."""
    return "tf32" if call.tf32 else "ieee"


def wide_precision(call: Call) -> str:
    """That of products that have fp32 operands in every call: what half precision would round or lose, tf32 holds."""
    return "ieee" if call.dtype == call.sums and not call.tf32 else "tf32"


def by_pixel(h: Tensor) -> Tensor:
    """``[N, R, OH, OW]`` as ``[N·OH·OW, R]``, copied only if it is not channels_last."""
    return h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).contiguous()
