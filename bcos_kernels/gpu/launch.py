"""Starts a kernel or records its launch, with small functions that all launches need."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import KernelInterface

__all__ = ["Launch", "cdiv", "launch", "on_device_of", "recording"]


class Launch(NamedTuple):
    """One launch of a kernel: its grid, its arguments, and all for which Triton specialises it."""

    kernel: KernelInterface
    grid: tuple[int, ...]
    arguments: tuple
    constants: dict
    warps: int
    stages: int


class _OfThread(threading.local):
    recorded: list[Launch] | None = None


_this = _OfThread()


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """A context in which this thread's launches are collected instead of started: tensors may be on the meta device."""
    outer, _this.recorded = _this.recorded, []
    try:
        yield _this.recorded
    finally:
        _this.recorded = outer


def launch(kernel, grid: tuple[int, ...], *arguments, warps: int = 4, stages: int = 1, **constants) -> None:
    """Starts ``kernel`` on the current device and stream.

    Triton passes a float as fp32. Where the first tensor is fp64, floats are constants of the kernel, which are exact.
    """
    if next(t for t in arguments if isinstance(t, Tensor)).dtype is torch.float64:
        arguments = tuple(tl.constexpr(value) if isinstance(value, float) else value for value in arguments)
    if _this.recorded is not None:
        _this.recorded.append(Launch(kernel, grid, arguments, constants, warps, stages))
        return
    kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def on_device_of(x: Tensor):
    """A context in which the device of x is the current one, on which Triton starts kernels."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
