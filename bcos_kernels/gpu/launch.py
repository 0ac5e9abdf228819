"""Starts a kernel or records its launch, with small functions that all launches need."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import KernelInterface
from triton.tools.tensor_descriptor import TensorDescriptor

from ..core import plans
from ..core.env import INTERPRETED

__all__ = ["Launch", "launch", "on_device_of", "recording"]


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
    What Triton compiled is kept under all for which it specialises a kernel, and started from there, because its own
    search for it takes the host more time than everything else in a start.
    """
    if next(t for t in arguments if isinstance(t, Tensor)).dtype is torch.float64:
        arguments = tuple(tl.constexpr(value) if isinstance(value, float) else value for value in arguments)
    if _this.recorded is not None:
        _this.recorded.append(Launch(kernel, grid, arguments, constants, warps, stages))
        return
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    device = driver.active.get_current_device()
    constants_in_order = [constants[name] for name in kernel.arg_names[len(arguments) :]]
    key = kernel.fn, device, warps, stages, *map(_fact, arguments), *constants_in_order
    compiled = _compiled.get(key)
    if compiled is not None:
        stream = driver.active.get_current_stream(device)
        compiled[(*grid, 1, 1)[:3]](*arguments, *constants_in_order, stream=stream)
        return
    compiled = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    if compiled.metadata.target.backend == "cuda":  # AMD's depend on more: on the size of a tensor's memory
        plans.keep(_compiled, key, compiled)


_compiled: dict[tuple, Any] = {}
"""A kernel, its device and all for which Triton specialises it -> what Triton compiled."""


def _fact(argument: Any) -> Any:
    """What Triton specialises a kernel for of one argument."""
    kind = argument.__class__
    if kind is int or kind is float:
        return argument if kind is int else float
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if kind is TensorDescriptor:
        return argument.base.dtype, *argument.block_shape
    return argument


def on_device_of(x: Tensor):
    """A context in which the device of x is the current one, on which Triton starts kernels."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()
