"""Which candidates and tiles the CUDA kernels have for a call: pure functions of the problem."""

from __future__ import annotations

from ..gpu.problem import HALF, Problem
from ..gpu.tile import Tile

__all__ = ["LARGE", "OWN_SHARE", "SMALL", "candidates", "padding", "tiles", "wgrad_tile"]

SMALL, LARGE = Tile(64, 64, 32), Tile(128, 128, 32, 8)
MAX_SLOTS = 64  # filters of a maximum in one tile
MOST_GROUPS = 65535  # blocks of a grid's second axis, which has the taps as well
MOST_TAPS = 600  # of a depthwise filter, which a block holds in shared memory

OWN_SHARE = {"sm_80": 0.7, "sm_90": 0.35, "sm_100": 0.25}
"""Assumed: the rate of these kernels' products, as a share of the vendor's: mma.sync reaches less of a Hopper than its
own instructions. Measuring replaces it."""


def candidates(p: Problem, direction: str) -> tuple[str, ...]:
    """The candidates that can serve one direction."""
    served = p.taps <= MOST_TAPS if p.depthwise else p.groups * p.taps <= MOST_GROUPS
    if not served or p.max_out > MAX_SLOTS:
        return ("vendor",)
    if direction == "forward" or p.depthwise:
        return "one-pass", "vendor"
    # narrow groups share a tile where u is given alone
    fused = p.pack == 1 and (p.power == 1 or p.saves_norm)
    return ("one-pass", "semi", "vendor") if fused else ("semi", "vendor")


def tiles(p: Problem, direction: str, candidate: str) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first; none where there is nothing to choose."""
    if candidate == "vendor" or p.depthwise:
        return []
    wide = p.dtype in HALF and p.group_channels % 8 == 0
    if direction != "forward":
        wide = wide and candidate == "semi" and p.group_filters % 8 == 0
    return [LARGE, SMALL] if wide and p.group_filters >= LARGE.n else [SMALL, LARGE] if wide else [SMALL]


def wgrad_tile(p: Problem) -> Tile:
    """Filters × channels of a tap, in steps of pixels."""
    return tiles(p, "training", "semi")[0]


def padding(p: Problem) -> float:
    """What the products compute, as a multiple of what is asked for."""
    return float(p.pack)
