"""Which candidates and tiles the Triton kernels have for a call: pure functions of the problem."""

from __future__ import annotations

from ..gpu.problem import HALF, Problem, power_of_two
from ..gpu.tile import CANDIDATES, DIRECTIONS, Tile

__all__ = ["CANDIDATES", "DIRECTIONS", "OWN_SHARE", "Tile", "candidates", "padding", "tiles", "wgrad_tile"]

MAX_SLOTS = 16  # filters of a maximum that still fit a tile

MOST_FUSED = {"sm_80": 64 * 128, "gfx942": 64 * 64}  # values of a tile beside which u and t fit the registers
OWN_SHARE = {"sm_80": 0.85, "sm_90": 0.6, "sm_100": 0.4, "gfx942": 0.5}
"""Assumed: the rate of these kernels' products, as a share of the vendor's. Measuring replaces it."""


def candidates(p: Problem, direction: str) -> tuple[str, ...]:
    """The candidates that can serve one direction."""
    if p.max_out > MAX_SLOTS:
        return ("vendor",)
    if direction == "forward" or p.depthwise:
        return "one-pass", "vendor"
    # a maximum, or the power and its slope, beside a product's tile would not fit the registers
    fused = p.pack == 1 and p.max_out == 1 and (p.power == 1 or (p.power == 2 and p.saves_norm))
    return ("one-pass", "semi", "vendor") if fused else ("semi", "vendor")


def tiles(p: Problem, direction: str, candidate: str) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first; none where there is nothing to choose."""
    if candidate == "vendor" or (p.depthwise and candidate != "semi"):
        return []
    if direction == "forward":
        columns = p.pack * p.group_outputs * slots(p)
        depth = p.taps * p.group_channels if p.flat else p.pack * p.group_channels
        return _tiles(p, p.pixels, columns, depth, slots(p), p.flat)
    fused = candidate == "one-pass"
    found = _tiles(p, p.in_pixels, p.pack * p.group_channels, p.pack * p.group_filters, busy=fused)
    most = MOST_FUSED.get(p.arch, 128 * 128)
    return [tile for tile in found if not fused or tile.m * tile.n <= most]


def wgrad_tile(p: Problem) -> Tile:
    """Filters × channels of a tap (of all taps in a flat walk), in steps of pixels."""
    columns = p.taps * p.group_channels if p.flat else p.pack * p.group_channels
    return _tiles(p, p.pack * p.group_filters, columns, p.pixels, busy=True)[0]


def padding(p: Problem) -> float:
    """What the products compute, as a multiple of what is asked for."""
    return p.pack if p.groups > 1 else slots(p) / p.max_out


def slots(p: Problem) -> int:
    """Columns that the filters of one output take: a power of two."""
    return power_of_two(p.max_out)


def _tiles(p: Problem, rows: int, columns: int, depth: int, least_columns: int = 16, busy: bool = False) -> list[Tile]:
    half = p.dtype in HALF
    stages = 2 if p.arch.startswith("gfx") or not half else 3
    shapes = [(128, 128), (128, 64), (64, 128), (64, 64), (64, 32)] if half else [(64, 64), (64, 32), (32, 32)]
    k = min(64 if half else 32, power_of_two(depth, 16))
    found = {}
    for m, n in shapes:
        m, n = min(m, power_of_two(rows, 16)), max(min(n, power_of_two(columns, 16)), least_columns)
        more = m * n >= 128 * 128 or ((busy or not half) and max(m, n) > (64 if half else 32))
        found[Tile(m, n, k, 8 if more else 4, stages)] = None
    return list(found)


def splits(rows: int, programs: int, step: int) -> int:
    """Shares of the rows that wgrad sums on their own, so that its programs fill the device."""
    return max(1, min(-(-528 // programs), -(-rows // (4 * step)), 64))


def strip(width: int) -> int:
    """Neighbouring pixels that a depthwise program's row holds: the fewest left over, then the most."""
    return min(range(8, 3, -1), key=lambda v: (-(-width // v) * v, -v)) if width > 4 else width
