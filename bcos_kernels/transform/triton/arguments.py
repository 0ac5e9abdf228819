"""The arguments that kernels take from a call: sizes, constants and new tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import Call, power_of_two

__all__ = ["formula", "image", "row_tile", "shares", "sizes", "window"]


def sizes(call: Call) -> tuple[int, ...]:
    """The sizes H, W, OH and OW."""
    return *call.in_size, *call.out_size


def window(call: Call) -> dict[str, int]:
    """The constants of the window."""
    names = ("KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW")
    return dict(zip(names, (*call.kernel, *call.stride, *call.padding, *call.dilation), strict=True))


def formula(call: Call) -> dict[str, int | bool]:
    """The constants of the formula."""
    return {
        "POWER": call.power, "TENSOR_B": call.tensor_b, "EXACT_TWO": call.spec.exact_two, "EXACT": call.exact,
    }  # fmt: skip


def row_tile(columns: int, values: int = 2048) -> tuple[int, int]:
    """The rows and columns of an elementwise tile of that many values."""
    n = min(128, power_of_two(columns))
    return values // n, n


def image(call: Call, channels: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A new tensor ``[N, channels, OH, OW]`` on the device of ``like``, or an empty tensor for 0 channels."""
    if channels == 0:
        return torch.empty(0, dtype=dtype, device=like.device)
    shape = (call.batch, channels, *call.out_size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def shares(call: Call, splits: int, device, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """New fp32 tensors for the partial sums of dw, ``[splits, F·KH·KW·CG]``, and of dbias, ``[splits, F]``."""
    partial = torch.empty((splits, call.filters * call.group_channels * call.taps), dtype=torch.float32, device=device)
    return partial, torch.empty((splits, call.filters), dtype=torch.float32, device=device) if with_bias else None
