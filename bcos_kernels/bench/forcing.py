"""How one of the ways to serve a call is forced upon a backend that has several."""

from __future__ import annotations

from ..core.choice import forced
from ..transform import TRANSFORM

__all__ = ["BACKENDS", "candidates", "forced"]

BACKENDS = tuple(name for name in TRANSFORM.backends if name != "reference")


def candidates(backend: str) -> tuple[str, ...]:
    """The ways in which a backend can serve a call, where it has several."""
    return tuple(c.name for c in TRANSFORM.candidates_of(backend)) if TRANSFORM.has_choice(backend) else ()
