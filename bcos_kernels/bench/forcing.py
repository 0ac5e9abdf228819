"""How one of the ways to serve a call is forced upon a backend that has several."""

from __future__ import annotations

from .. import dispatch
from ..backends import gpu
from ..backends.gpu.choice import forced
from ..backends.gpu.tile import CANDIDATES

__all__ = ["BACKENDS", "candidates", "forced"]

BACKENDS = tuple(name for name in dispatch.BACKENDS if name not in ("gpu", "reference"))


def candidates(backend: str) -> tuple[str, ...]:
    """The ways in which a backend can serve a call, where it has several."""
    return CANDIDATES if backend in gpu.BACKENDS else ()
