"""The arguments that kernels take from a call: dense tensors, and which statistic a value belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.formats import channels_last
from ..call import Call

__all__ = ["as_given", "counted", "dense", "is_alone", "number", "owner", "vector"]


def dense(t: Tensor, call: Call) -> Tensor:
    """x or a gradient at y in the memory format of the call, copied only if it is in another."""
    if not call.channels_last or t.dim() == 2:
        return t.contiguous()
    return channels_last(t)


def as_given(t: Tensor, x: Tensor) -> Tensor:
    """A dense result with the strides that torch gives to a tensor like x, copied only if it has others."""
    if t.stride() == x.stride():
        return t
    like = torch.empty_like(x, dtype=t.dtype)
    return t if like.stride() == t.stride() else like.copy_(t)


def vector(t: Tensor | None) -> Tensor | None:
    """A tensor of one value for each channel, or for each set of values, without gaps in memory."""
    return None if t is None else t.contiguous()


def owner(call: Call) -> tuple[int, int]:
    """The statistics of an image, 0 where all images share them, and the channels that share one."""
    if call.given or call.spec.over == "batch":
        return 0, 1
    if call.spec.over == "all":
        return 0, call.channels
    return call.spec.groups, call.channels // call.spec.groups


def counted(call: Call) -> float:
    """The number of values that share a statistic, as :func:`number` returns it."""
    images = 1 if call.spec.over == "group" else call.batch
    return number(call, images * call.positions * owner(call)[1])


def number(call: Call, count: int) -> float:
    """A count by which a kernel divides: for fp64 an integer, because a float would become a constant of the kernel."""
    return count if call.dtype == torch.float64 else float(count)


def is_alone(call: Call) -> bool:
    """Whether every value is its own mean, which is taken from it: y does not depend on x."""
    count = call.channels if call.spec.over == "position" else counted(call)
    return call.spec.centered and not call.given and count == 1
