"""The memory formats of images with two and with three axes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHANNELS_LAST", "channels_last", "is_channels_last", "memory_format", "suggested", "suggests_channels_last"]

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The number of dimensions of an image tensor -> the format in which the channels of a pixel lie side by side."""


def channels_last(t: Tensor) -> Tensor:
    """An image tensor in the order NHWC or NDHWC; a tensor of another rank is returned as it is."""
    return t.contiguous(memory_format=CHANNELS_LAST[t.dim()]) if t.dim() in CHANNELS_LAST else t


def is_channels_last(t: Tensor) -> bool:
    """Whether an image tensor lies in that order, and not in the usual one as well."""
    found = CHANNELS_LAST.get(t.dim())
    return found is not None and t.is_contiguous(memory_format=found) and not t.is_contiguous()


def memory_format(t: Tensor) -> torch.memory_format:
    """The format of a tensor that lies like t: one of channels last, or the contiguous one."""
    return CHANNELS_LAST[t.dim()] if is_channels_last(t) else torch.contiguous_format


_OUTWARDS = {4: (1, 3, 2, 0), 5: (1, 4, 3, 2, 0)}
"""The number of dimensions of an image tensor -> its dimensions in channels last, from the innermost."""


def suggests_channels_last(t: Tensor) -> bool:
    """Whether PyTorch's convolutions take an image tensor as one of channels last, for which they return another.

    They read its strides (``suggest_memory_format`` in C++): a slice of channels last is one, and so is a filter of one
    tap that was made in this order.
    """
    order = _OUTWARDS.get(t.dim())
    if order is None:
        return False
    sizes, strides, least = t.shape, t.stride(), 0
    if strides[1] == 0:
        return False
    for axis in order:
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * sizes[axis]
    return True


def suggested(t: Tensor) -> torch.memory_format:
    """The format that a tensor suggests: one of channels last, or the contiguous one."""
    return CHANNELS_LAST[t.dim()] if suggests_channels_last(t) else torch.contiguous_format
