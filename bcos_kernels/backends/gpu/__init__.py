"""Calls on a GPU. Each direction of one is served by the fastest of the ways that its backends have.

Both backends serve images in NHWC and keep the same tensors for the backward, so that it may be another's. As a backend
of its own ``gpu`` is ``cuda`` and ``triton`` together, for what both serve.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ...spec import Call
from . import choice
from .problem import problem

__all__ = ["BACKENDS", "conv2d", "conv2d_backward", "kernels", "linear", "linear_backward", "operators", "why_not"]

BACKENDS = ("cuda", "triton")


@cache
def kernels(backend: str) -> ModuleType:
    """The module of one backend, with its ``forward`` and ``backward`` of a problem."""
    return import_module(f"..{backend}", __name__)


def why_not(call: Call) -> list[str]:
    """Reasons why not both backends serve ``call``; empty when they do."""
    return [f"{backend}: {reason}" for backend in BACKENDS for reason in kernels(backend).why_not(call)]


def operators(*backends: str) -> tuple:
    """``linear``, ``conv2d`` and their backwards of :mod:`bcos_kernels.ops`, by whichever of ``backends`` is faster."""
    return (
        partial(_forward, backends, True),
        partial(_forward, backends, False),
        partial(_backward, backends, True),
        partial(_backward, backends, False),
    )


def _forward(backends: tuple[str, ...], is_linear: bool, x: Tensor, weight: Tensor, bias, b, *rest):
    p = problem(x, weight, bias is not None, b is not None, rest[:-1], rest[-1], is_linear)
    chosen = choice.choose(p, "forward", backends)
    outputs = kernels(chosen.backend).forward(p, chosen, x, weight, bias, b)
    if is_linear or _is_channels_last(x) or _is_channels_last(weight):
        return outputs
    return tuple(t.contiguous() for t in outputs)


def _backward(backends: tuple[str, ...], is_linear: bool, grad: Tensor, x: Tensor, weight: Tensor, b, *rest):
    saved, arguments, (explain, needs) = rest[:4], rest[4:-2], rest[-2:]
    p = problem(x, weight, needs[2], b is not None, arguments, grad.dtype, is_linear)
    chosen = choice.choose(p, "explanation" if explain and not needs[1] else "training", backends)
    grads = kernels(chosen.backend).backward(p, chosen, grad, x, weight, b, saved, explain, needs)
    dx, *others = (x.new_empty(0) if g is None else g for g in grads)
    return dx if is_linear or dx.dim() == 1 or _is_channels_last(x) else dx.contiguous(), *others


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


linear, conv2d, linear_backward, conv2d_backward = operators(*BACKENDS)
