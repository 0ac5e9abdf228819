"""Calls on a GPU. Each direction of one is served by the fastest of the ways that its backends have.

Both backends serve images in NHWC and keep the same tensors for the backward, so that it may be another's. As a backend
of its own ``gpu`` is ``cuda`` and ``triton`` together, for what both serve.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from types import ModuleType

from ...spec import Call

__all__ = ["BACKENDS", "backend", "conv2d", "conv2d_backward", "linear", "linear_backward", "operators", "why_not"]

BACKENDS = ("cuda", "triton")


def backend(name: str) -> ModuleType:
    """The module of one of ``BACKENDS``, which import this one."""
    from .. import cuda, triton

    return {"cuda": cuda, "triton": triton}[name]


def why_not(call: Call) -> list[str]:
    """Reasons why not both backends serve ``call``; empty when they do."""
    return [f"{name}: {reason}" for name in BACKENDS for reason in backend(name).why_not(call)]


def operators(*backends: str) -> tuple[partial, ...]:
    """``linear``, ``conv2d`` and their backwards of :mod:`bcos_kernels.ops`, by whichever of ``backends`` is faster."""
    return tuple(
        partial(_serve, name, backends, linear) for name in ("forward", "backward") for linear in (True, False)
    )


def _serve(direction: str, *args):
    return getattr(_serving(), direction)(*args)


@cache
def _serving() -> ModuleType:
    """Imported by the first call of a GPU: machines without one never need it."""
    return import_module(".serve", __name__)


linear, conv2d, linear_backward, conv2d_backward = operators(*BACKENDS)
