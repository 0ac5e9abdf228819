"""What of a call the kernels take: sizes, constants and fresh tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import Call, power_of_two

__all__ = ["formula", "image", "row_tile", "shares", "sizes", "window"]


def sizes(call: Call) -> tuple[int, ...]:
    """H, W, OH, OW."""
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


def row_tile(columns: int) -> tuple[int, int]:
    """Rows and columns of an elementwise tile of 2048 values."""
    n = min(128, power_of_two(columns))
    return 2048 // n, n


def image(call: Call, channels: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A fresh ``[N, channels, OH, OW]`` on the device of ``like``; of no channels, an empty tensor."""
    if channels == 0:
        return torch.empty(0, dtype=dtype, device=like.device)
    shape = (call.batch, channels, *call.out_size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def shares(call: Call, splits: int, device, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Fresh fp32 tensors for the shares of wgrad, ``[splits, F·KH·KW·CG]``, and of dbias, ``[splits, F]``."""
    partial = torch.empty((splits, call.filters * call.group_channels * call.taps), dtype=torch.float32, device=device)
    return partial, torch.empty((splits, call.filters), dtype=torch.float32, device=device) if with_bias else None
