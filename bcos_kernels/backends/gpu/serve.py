"""Serves the operators of a GPU: a call becomes a problem, a problem a choice, and a backend does the rest."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from . import choice
from .problem import problem

__all__ = ["backward", "forward", "kernels"]


@cache
def kernels(backend: str) -> ModuleType:
    """The module with the ``forward`` and ``backward`` of one backend."""
    return import_module(f"...{backend}.serve", __name__)


def forward(backends: tuple[str, ...], is_linear: bool, x: Tensor, weight: Tensor, bias, b, *rest):
    """(y, n, l, winner) of ``bcos_kernels::linear`` or ``conv2d``, by whichever of ``backends`` is faster."""
    p = problem(x, weight, bias is not None, b is not None, rest[:-1], rest[-1], is_linear)
    chosen = choice.choose(p, "forward", backends)
    outputs = kernels(chosen.backend).forward(p, chosen, x, weight, bias, b)
    if is_linear or _is_channels_last(x) or _is_channels_last(weight):
        return outputs
    return tuple(t.contiguous() for t in outputs)


def backward(backends: tuple[str, ...], is_linear: bool, grad: Tensor, x: Tensor, weight: Tensor, b, *rest):
    """(dx, dweight, dbias, db), empty where not needed."""
    saved, arguments, (explain, needs) = rest[:4], rest[4:-2], rest[-2:]
    p = problem(x, weight, needs[2], b is not None, arguments, grad.dtype, is_linear)
    chosen = choice.choose(p, "explanation" if explain and not needs[1] else "training", backends)
    grads = kernels(chosen.backend).backward(p, chosen, grad, x, weight, b, saved, explain, needs)
    dx, *others = (x.new_empty(0) if g is None else g for g in grads)
    return dx if is_linear or dx.dim() == 1 or _is_channels_last(x) else dx.contiguous(), *others


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
