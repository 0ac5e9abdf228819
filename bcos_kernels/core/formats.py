"""The memory formats of images with two and with three axes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHANNELS_LAST", "channels_last", "is_channels_last", "memory_format"]

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
