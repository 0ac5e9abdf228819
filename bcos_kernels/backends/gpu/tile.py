"""The words of a choice: directions, candidates and tiles."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CANDIDATES", "DIRECTIONS", "Tile"]

DIRECTIONS = ("forward", "explanation", "training")
CANDIDATES = ("one-pass", "semi", "vendor")


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a product's step, and how it is started."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
