"""How a call is served: by which backend, which of its candidates and in which tile.

Every direction of a call can be served in up to three ways (candidates) by a backend:

- ``one-pass``: norm, scale and their derivatives inside the products;
- ``semi`` (backward): one kernel forms u = ∂L/∂z and t, own products take them;
- ``vendor``: the vendor's products, and fused helpers beside them.

Which one runs is what :func:`bcos_kernels.tune` measured on this device, or else what the byte model predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType

from . import byte_model, choices
from .problem import Problem
from .tile import Tile

__all__ = ["Choice", "candidates", "choose", "choosing", "forced", "plan_of", "predicted", "ways"]


@dataclass(frozen=True)
class Choice:
    """How one direction of a call is served, and why so."""

    backend: str
    candidate: str
    tile: Tile | None
    """Of the product that forms y or dx; None where there is nothing to choose."""
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} {self.candidate}"


@cache
def plan_of(backend: str) -> ModuleType:
    """The module that says which candidates and tiles a backend has."""
    return import_module(f"...{backend}.plan", __name__)


def candidates(p: Problem, direction: str, backends: tuple[str, ...]) -> list[tuple[str, str]]:
    """``(backend, candidate)`` of every candidate, in the order of preference among equals."""
    return [(backend, name) for backend in backends for name in plan_of(backend).candidates(p, direction)]


def ways(p: Problem, direction: str, backends: tuple[str, ...]) -> list[tuple[str, str, Tile | None]]:
    """``(backend, candidate, tile)`` of every way to serve one direction, a candidate's best guess first."""
    return [
        (backend, name, tile)
        for backend, name in candidates(p, direction, backends)
        for tile in plan_of(backend).tiles(p, direction, name) or [None]
    ]


def predicted(p: Problem, direction: str, backends: tuple[str, ...]) -> Choice:
    """The candidate of the shortest predicted time, in its first tile."""
    times = {c: byte_model.predict(p, direction, plan_of(c[0]), c[1]) for c in candidates(p, direction, backends)}
    best = min(times, key=times.get)
    listed = ", ".join(f"{backend} {name} {1e6 * time:.0f} µs" for (backend, name), time in times.items())
    return Choice(*next(way for way in ways(p, direction, backends) if way[:2] == best), f"predicted: {listed}")


def _choose(p: Problem, direction: str, backends: tuple[str, ...]) -> Choice:
    measured = []
    stored, offered = choices.find(p, direction) or {}, ways(p, direction, backends)
    for backend, known in stored.items():
        way = backend, known["candidate"], Tile(*known["tile"]) if known["tile"] else None
        if way in offered:
            measured.append((known["seconds"][known["candidate"]], way))
    if not measured:
        return predicted(p, direction, backends)
    return Choice(*min(measured, key=lambda m: m[0])[1], "measured on this device")


choose = lru_cache(maxsize=4096)(_choose)
"""``choose(problem, direction, backends)``: the stored choice, or the candidate of the shortest predicted time."""


@contextmanager
def choosing(choice: Callable[[Problem, str, tuple[str, ...]], Choice]) -> Iterator[None]:
    """Within the context ``choice(problem, direction, backends)`` decides: for measuring and for tests."""
    global choose
    usual, choose = choose, choice
    try:
        yield
    finally:
        choose = usual


@contextmanager
def forced(candidate: str | None, tile: Tile | None = None) -> Iterator[dict[str, tuple[Problem, Choice]]]:
    """Within the context every call is served by ``candidate``, or by the first that its backend has.

    None leaves the choice alone. Yields what was chosen, direction -> ``(problem, choice)``.
    """
    usual, chosen = choose, {}

    def force(p: Problem, direction: str, backends: tuple[str, ...]) -> Choice:
        choice = usual(p, direction, backends)
        if candidate is not None:
            offered = ways(p, direction, backends)
            backend, name, first = next((way for way in offered if way[1] == candidate), offered[0])
            choice = Choice(backend, name, tile or first, "forced")
        chosen[direction] = p, choice
        return choice

    with choosing(force):
        yield chosen
