"""The words of a choice: backends, their candidates, directions and tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["DIRECTIONS", "Backend", "Candidate", "Tile"]

DIRECTIONS = ("forward", "explanation", "training")
"""The forward; the backward with the scale frozen that forms the input's gradient alone; any other backward."""


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a product's step, and how it is started."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Backend:
    """Whose kernels run."""

    name: str
    why_not: Callable[[Any], list[str]]
    """``why_not(call)``: the reasons why it does not serve a call; empty where it does."""
    interchangeable: bool = False
    """Whether it keeps the same tensors for the backward as the other such backends, so that these may serve that."""


def _nothing_to_choose(call, direction: str) -> list[Tile]:
    return []


def _no_prediction(call, direction: str) -> float:
    return 0.0


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way of a backend to serve calls of an op."""

    backend: str
    name: str
    forward: Callable[..., tuple] | None
    """``forward(inputs, call, tile) -> outputs``; None where it serves backwards alone."""
    backward: Callable[..., tuple]
    """``backward(grad, inputs, saved, call, tile, frozen, needs) -> gradients``, None where not needed."""
    serves: Callable[[Any, str], bool] = lambda call, direction: True
    """``serves(call, direction)``, of a call that the backend serves; see :meth:`can_serve`."""
    tiles: Callable[[Any, str], list[Tile]] = _nothing_to_choose
    """``tiles(call, direction)``: of the product that forms y or dx, the best guess first."""
    cost: Callable[[Any, str], float] = _no_prediction
    """``cost(call, direction)``: seconds, predicted."""

    def can_serve(self, call, direction: str) -> bool:
        """Whether it serves one direction of a call that its backend serves."""
        return (direction != "forward" or self.forward is not None) and self.serves(call, direction)

    def __str__(self) -> str:
        return f"{self.backend} {self.name}"
