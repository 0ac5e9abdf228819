"""Starts a kernel or records its launch, with small functions that all launches need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
    key = kernel.fn, device, grid, warps, stages, *_facts(arguments), *constants, *constants.values()
    found = _starts.get(key)
    if found is not None:
        start, names = found
        stream = driver.active.get_current_stream(device)
        start(*arguments, *[constants[name] for name in names], stream=stream)
        return
    compiled = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
    if compiled.metadata.target.backend == "cuda":  # AMD's depend on more: on the size of a tensor's memory
        plans.keep(_starts, key, (compiled[(*grid, 1, 1)[:3]], kernel.arg_names[len(arguments) :]))


_starts: dict[tuple, tuple[Callable, list[str]]] = {}
"""A kernel, its device, its grid and all for which Triton specialises it -> what starts the kernel that Triton
compiled, and the names of its constants in its own order."""


def _facts(arguments: tuple) -> list:
    """What Triton specialises a kernel for of its arguments. It is one loop, as a function for each costs more."""
    facts: list[Any] = []
    for argument in arguments:
        kind = argument.__class__
        if kind is int:
            facts.append(argument)
        elif kind is float:
            facts.append(float)
        elif isinstance(argument, Tensor):
            facts += argument.dtype, argument.data_ptr() % 16 == 0
        elif kind is TensorDescriptor:
            facts += argument.base.dtype, *argument.block_shape
        else:
            facts.append(argument)
    return facts


def on_device_of(x: Tensor):
    """A context in which the device of x is the current one, on which Triton starts kernels."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()
