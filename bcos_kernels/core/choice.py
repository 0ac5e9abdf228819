"""How one direction of a call is served: by which candidate, and with which tile.

Where a call has several candidates, the fastest one is chosen: as :func:`bcos_kernels.tune` measured on this device,
or else as the candidates' cost models predict.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from . import tuned
from .candidate import Candidate, Tile

__all__ = ["Choice", "choose", "choosing", "forced", "predicted", "taking_map", "ways"]


@dataclass(frozen=True)
class Choice:
    """How one direction of a call is served, and why."""

    candidate: Candidate
    tile: Tile | None
    """The tile of the product that forms y or dx; None for a candidate that offers no tiles."""
    reason: str

    def __str__(self) -> str:
        return str(self.candidate)


class Op(Hashable, Protocol):
    """What a choice needs to know of an op."""

    def candidates_of(self, backend: str) -> tuple[Candidate, ...]:
        """The candidates of the backends that the string names; of equally fast ones, the first is preferred."""


def ways(op: Op, backend: str, call, direction: str) -> list[tuple[Candidate, Tile | None]]:
    """Every way to serve one direction: each candidate with each of its tiles, in the order of preference.

    A candidate may still refuse, see :attr:`Candidate.refusal`.
    """
    found: list[tuple[Candidate, Tile | None]] = []
    for candidate in op.candidates_of(backend):
        if candidate.can_serve(call, direction):
            found += [(candidate, tile) for tile in candidate.tiles(call, direction)] or [(candidate, None)]
    return found


def predicted(op: Op, backend: str, call, direction: str, among: Callable[[Candidate], bool] | None = None) -> Choice:
    """The candidate with the shortest predicted time, of those ``among`` which it is sought, and its first tile.

    One that refuses the call is passed over, and the reason says so. Those that are slower are not asked.
    """
    serving = [c for c in op.candidates_of(backend) if c.can_serve(call, direction) and (among is None or among(c))]
    times = {c: c.cost(call, direction) for c in serving}
    refusals = []
    for best in sorted(times, key=times.__getitem__):
        if not (refusal := best.refusal(call, direction)):
            break
        refusals.append(f"; {best} refuses: {refusal}")
        del times[best]
    listed = ", ".join(f"{candidate} {1e6 * time:.0f} µs" for candidate, time in times.items())
    tiles = best.tiles(call, direction)
    return Choice(best, tiles[0] if tiles else None, f"predicted: {listed}{''.join(refusals)}")


def _choose(op: Op, backend: str, call, direction: str) -> Choice:
    candidates = op.candidates_of(backend)
    if len(candidates) == 1 and not candidates[0].tiles(call, direction):
        return Choice(candidates[0], None, "the only candidate")
    stored, measured = tuned.find(call, direction) or {}, []
    for candidate, tile in ways(op, backend, call, direction) if stored else ():
        known = stored.get(candidate.backend)
        if known and known["candidate"] == candidate.name and tuned.tile(known) == tile:
            measured.append((known["seconds"][candidate.name], candidate, tile))
    for _, candidate, tile in sorted(measured, key=lambda m: m[0]):
        if not candidate.refusal(call, direction):
            return Choice(candidate, tile, "measured on this device")
    return predicted(op, backend, call, direction)


choose = lru_cache(maxsize=4096)(_choose)
"""``choose(op, backend, call, direction)``: the measured choice, or else the predicted one."""


@lru_cache(maxsize=4096)
def taking_map(op: Op, backend: str, call, direction: str) -> Choice:
    """The predicted choice among the candidates whose backward takes a gradient map."""
    return predicted(op, backend, call, direction, lambda candidate: candidate.takes_gradient_map)


@contextmanager
def choosing(choice: Callable[..., Choice]) -> Iterator[None]:
    """A context in which ``choice(op, backend, call, direction)`` replaces :func:`choose`, in all threads.

    It is for measuring, reports and tests. A thread waits until no other one is in such a context.
    """
    global choose
    with _replacing:
        usual, choose = choose, choice  # type: ignore[assignment]
        try:
            yield
        finally:
            choose = usual


_replacing = threading.RLock()


@contextmanager
def forced(name: str | None, tile: Tile | None = None) -> Iterator[dict[str, tuple[object, Choice]]]:
    """A context in which the candidate ``name`` serves every call that it can, and the first that can all others.

    What it has to compile first is compiled. With None, the usual choice is made. Yields what was chosen last:
    direction -> ``(call, choice)``.
    """
    usual, chosen = choose, {}

    def force(op: Op, backend: str, call, direction: str) -> Choice:
        choice = usual(op, backend, call, direction)
        if name is not None:
            offered = sorted(ways(op, backend, call, direction), key=lambda way: way[0].name != name)
            candidate, first = next(way for way in offered if not way[0].refusal(call, direction, True))
            choice = Choice(candidate, tile or first, "forced")
        chosen[direction] = call, choice
        return choice

    with choosing(force):
        yield chosen
