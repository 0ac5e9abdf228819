"""Chooses the backends of a call and explains the choice; both rest on each backend's ``why_not``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache

import torch

from . import env
from .candidate import Backend

__all__ = ["OF_ANY_OP", "asked", "check", "choose", "named", "other_dtype", "reasons"]

FORCED: str | None = env.BACKEND
OF_ANY_OP: set[str] = set()
"""The names of the backends of all ops."""


def named(names: str) -> tuple[str, ...]:
    """The names of backends in a string such as ``"cpu"`` or ``"cuda,triton"``."""
    return tuple(name.strip() for name in names.split(","))


def reasons(backends: Mapping[str, Backend], call) -> dict[str, list[str]]:
    """Why each backend does not serve the call; an empty list where it does."""
    return {name: backend.why_not(call) for name, backend in backends.items()}


def asked(backends: Mapping[str, Backend], forced: str | None) -> str | None:
    """The backend that an op with these backends is asked for: by ``forced``, or else by the environment.

    The environment asks all ops at once; one that has no such backend, as another op has, is not meant.
    """
    if forced is not None or FORCED is None:
        return forced
    lacks = [name for name in named(FORCED) if name not in backends]
    return None if lacks and OF_ANY_OP.issuperset(named(FORCED)) else FORCED


def choose(backends: Mapping[str, Backend], call, forced: str | None = None, op: str = "this op") -> str:
    """The name of the backend that serves the call, or the names of several that share it: ``"cuda,triton"``.

    ``backends`` are in the order of preference; the last serves every valid call. If ``forced`` or the environment
    variable ``BCOS_KERNELS_BACKEND`` names a backend, no other one is chosen. Raises ValueError if that backend is
    unknown, or if it cannot serve the call; the error then lists the reasons. Where the environment names a backend
    that other ops have and this one has not, the call is served as without it, which a warning tells once.
    """
    by = "backend" if forced else "BCOS_KERNELS_BACKEND"
    forced = asked(backends, forced or None)
    if forced is not None:
        return _forced(backends, call, forced, by)
    found = _first(backends, call)
    if FORCED is not None and not torch.compiler.is_compiling():
        _tell(op, FORCED, found)
    return found


@cache
def _tell(op: str, forced: str, found: str) -> None:
    warnings.warn(
        f"BCOS_KERNELS_BACKEND={forced}: {op} has no such backend, so {found!r} serves its calls; to choose another, "
        f"name one of its own by the argument backend",
        stacklevel=2,
    )


def _first(backends: Mapping[str, Backend], call) -> str:
    first = next(backend for backend in backends.values() if not backend.why_not(call))
    if not first.interchangeable:
        return first.name
    return ",".join(b.name for b in backends.values() if b.interchangeable and not b.why_not(call))


def check(backends: Mapping[str, Backend], forced: str, by: str = "backend") -> tuple[str, ...]:
    """The names in ``forced``. Raises ValueError if a backend is unknown, or if several cannot share a call.

    ``by`` is the argument or the environment variable that named them.
    """
    names = named(forced) if isinstance(forced, str) else (forced,)
    unknown = [name for name in names if not isinstance(name, str) or name not in backends]
    together = [name for name, backend in backends.items() if backend.interchangeable]
    if unknown or (len(names) > 1 and not set(names) <= set(together)):
        allowed = ", ".join(map(repr, (*backends, *[",".join(together)] * bool(together))))
        raise ValueError(f"{by}={forced!r}: allowed are {allowed}{' and None' * (by == 'backend')}")
    return names


def _forced(backends: Mapping[str, Backend], call, forced: str, by: str) -> str:
    names = check(backends, forced, by)
    why_not = [(name, reason) for name in names for reason in backends[name].why_not(call)]
    if why_not:
        listed = "; ".join(reason if len(names) == 1 else f"{name}: {reason}" for name, reason in why_not)
        raise ValueError(f"{by}={forced!r} cannot serve this call: {listed}")
    return ",".join(names)


def other_dtype(dtype: torch.dtype, served: tuple[torch.dtype, ...]) -> list[str]:
    """The reason why kernels of the dtypes ``served`` serve no call of ``dtype``; empty where they do."""
    return [] if dtype in served else [f"dtype {dtype} is not one of {', '.join(map(str, served))}"]
