"""Chooses the backend of a call and explains the choice: one predicate per backend does both."""

from __future__ import annotations

import os
from types import ModuleType

from .backends import cpu, cuda, gpu, reference, triton
from .spec import Call

__all__ = ["BACKENDS", "backend", "choose", "reasons"]

BACKENDS: dict[str, ModuleType] = {
    "cpu": cpu,
    "gpu": gpu,
    "cuda": cuda,
    "triton": triton,
    "reference": reference,
}
"""In the order of preference; the last serves every valid call."""

FORCED: str | None = os.environ.get("BCOS_KERNELS_BACKEND") or None


def backend(name: str) -> ModuleType:
    """The module of one backend."""
    return BACKENDS[name]


def reasons(call: Call) -> dict[str, list[str]]:
    """Why each backend does not serve the call; an empty list where it does."""
    return {name: module.why_not(call) for name, module in BACKENDS.items()}


def choose(call: Call, forced: str | None = None) -> str:
    """The name of the backend that serves the call.

    ``forced`` (an argument, or the environment variable ``BCOS_KERNELS_BACKEND``) is met or refused, never replaced.
    Raises ValueError if it is unknown or cannot serve the call, with its reasons.
    """
    forced = forced or FORCED
    if forced is None:
        return next(name for name, module in BACKENDS.items() if not module.why_not(call))
    if forced not in BACKENDS:
        raise ValueError(f"backend={forced!r}: allowed are {', '.join(map(repr, BACKENDS))} and None")
    why_not = BACKENDS[forced].why_not(call)
    if why_not:
        raise ValueError(f"backend={forced!r} cannot serve this call: {'; '.join(why_not)}")
    return forced
