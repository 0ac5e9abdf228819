"""The arguments that kernels take from a call: sizes, constants and new tensors."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.formats import CHANNELS_LAST
from ...gpu.sizes import power_of_two
from ..call import Call

__all__ = ["PIXEL", "Plane", "across", "formula", "image", "plane", "row_tile", "shares"]


class Plane(NamedTuple):
    """A window with two axes and the sizes that it walks."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes H, W, OH and OW."""
        return *self.in_size, *self.out_size

    @property
    def window(self) -> dict[str, int]:
        """The constants of the window."""
        names = ("KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW")
        return dict(zip(names, (*self.kernel, *self.stride, *self.padding, *self.dilation), strict=True))


PIXEL = Plane((1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1))
"""The window that sees one pixel, in images of one pixel."""


@lru_cache(maxsize=4096)
def plane(call: Call) -> Plane:
    """The window of the last two axes."""
    parts = call.in_size, call.out_size, call.kernel, call.stride, call.padding, call.dilation
    return Plane(*(part[-2:] for part in parts))  # type: ignore[arg-type]


def across(call: Call) -> Plane:
    """The window of the first of three axes, which takes the pixels that :func:`plane` has left as columns."""
    pixels = prod(call.out_size[1:])
    ones = call.kernel[0], call.stride[0], call.padding[0], call.dilation[0]
    kernel, stride, padding, dilation = zip(ones, (1, 1, 0, 1), strict=True)
    return Plane((call.in_size[0], pixels), (call.out_size[0], pixels), kernel, stride, padding, dilation)


def formula(call: Call) -> dict[str, int | bool]:
    """The constants of the formula."""
    return {
        "POWER": call.power, "TENSOR_B": call.tensor_b, "EXACT_TWO": call.spec.exact_two, "EXACT": call.exact,
    }  # fmt: skip


def row_tile(call: Call, columns: int, values: int = 2048) -> tuple[int, int]:
    """The rows and columns of an elementwise tile of that many values, or of as many fp64 as the registers hold."""
    n = min(128, power_of_two(columns))
    return (512 if call.dtype == torch.float64 else values) // n, n


def image(call: Call, channels: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A new tensor ``[N, channels, OH, OW]``, or with a third axis, on the device of ``like``; empty for 0 channels."""
    if channels == 0:
        return torch.empty(0, dtype=dtype, device=like.device)
    shape = (call.batch, channels, *call.out_size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=CHANNELS_LAST[len(shape)])


def shares(call: Call, splits: int, device, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """New fp32 tensors for the partial sums of dw, ``[splits, F·KH·KW·CG]``, and of dbias, ``[splits, F]``."""
    partial = torch.empty((splits, call.filters * call.group_channels * call.taps), dtype=torch.float32, device=device)
    return partial, torch.empty((splits, call.filters), dtype=torch.float32, device=device) if with_bias else None
