"""Starts a kernel, or records what would be started; and what every launcher needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

from ..gpu.problem import Problem, power_of_two

__all__ = ["Launch", "cdiv", "channels_last", "image", "launch", "recording", "row_tile", "shares"]


class Launch(NamedTuple):
    """One kernel with everything that is specialised on."""

    kernel: KernelInterface
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict
    warps: int
    stages: int


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the context launches are collected instead of started, so that tensors may be of the meta device."""
    global _recorded
    outer, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = outer


def launch(kernel, grid: tuple[int, ...], *arguments, warps: int = 4, stages: int = 1, **constants) -> None:
    """Starts ``kernel`` on the current device and stream."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, constants, warps, stages))
        return
    kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def row_tile(columns: int) -> tuple[int, int]:
    """Rows and columns of an elementwise tile of 2048 values."""
    n = min(128, power_of_two(columns))
    return 2048 // n, n


def channels_last(t: Tensor) -> Tensor:
    """An image tensor in the kernels' memory order, NHWC; a tensor of another rank as it is."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def image(p: Problem, channels: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A fresh ``[N, channels, OH, OW]`` on the device of ``like``; of no channels, an empty tensor."""
    if channels == 0:
        return torch.empty(0, dtype=dtype, device=like.device)
    shape = (p.x_shape[0], channels, *p.out_size)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def shares(p: Problem, splits: int, device, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Fresh fp32 tensors for the shares of wgrad, ``[splits, F·KH·KW·CG]``, and of dbias, ``[splits, F]``."""
    partial = torch.empty((splits, p.filters * p.group_channels * p.taps), dtype=torch.float32, device=device)
    return partial, torch.empty((splits, p.filters), dtype=torch.float32, device=device) if with_bias else None
