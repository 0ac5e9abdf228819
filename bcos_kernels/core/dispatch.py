"""Chooses the backends of a call and explains the choice; both rest on each backend's ``why_not``."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from . import env
from .candidate import Backend

__all__ = ["check", "choose", "named", "other_dtype", "reasons"]

FORCED: str | None = env.BACKEND


def named(names: str) -> tuple[str, ...]:
    """The names of backends in a string such as ``"cpu"`` or ``"cuda,triton"``."""
    return tuple(name.strip() for name in names.split(","))


def reasons(backends: Mapping[str, Backend], call) -> dict[str, list[str]]:
    """Why each backend does not serve the call; an empty list where it does."""
    return {name: backend.why_not(call) for name, backend in backends.items()}


def choose(backends: Mapping[str, Backend], call, forced: str | None = None) -> str:
    """The name of the backend that serves the call, or the names of several that share it: ``"cuda,triton"``.

    ``backends`` are in the order of preference; the last serves every valid call. If ``forced`` or the environment
    variable ``BCOS_KERNELS_BACKEND`` names a backend, no other one is chosen. Raises ValueError if that backend is
    unknown, or if it cannot serve the call; the error then lists the reasons.
    """
    forced = forced or FORCED
    if forced is not None:
        return _forced(backends, call, forced)
    first = next(backend for backend in backends.values() if not backend.why_not(call))
    if not first.interchangeable:
        return first.name
    return ",".join(b.name for b in backends.values() if b.interchangeable and not b.why_not(call))


def check(backends: Mapping[str, Backend], forced: str) -> tuple[str, ...]:
    """The names in ``forced``. Raises ValueError if a backend is unknown, or if several cannot share a call."""
    names = named(forced) if isinstance(forced, str) else (forced,)
    unknown = [name for name in names if name not in backends]
    together = [name for name, backend in backends.items() if backend.interchangeable]
    if unknown or (len(names) > 1 and not set(names) <= set(together)):
        allowed = ", ".join(map(repr, (*backends, ",".join(together))))
        raise ValueError(f"backend={forced!r}: allowed are {allowed} and None")
    return names


def _forced(backends: Mapping[str, Backend], call, forced: str) -> str:
    names = check(backends, forced)
    why_not = [(name, reason) for name in names for reason in backends[name].why_not(call)]
    if why_not:
        listed = "; ".join(reason if len(names) == 1 else f"{name}: {reason}" for name, reason in why_not)
        raise ValueError(f"backend={forced!r} cannot serve this call: {listed}")
    return ",".join(names)


def other_dtype(dtype: torch.dtype, served: tuple[torch.dtype, ...]) -> list[str]:
    """The reason why a backend that serves these dtypes does not serve ``dtype``; empty where it does."""
    return [] if dtype in served else [f"dtype {dtype} is not one of {', '.join(map(str, served))}"]
