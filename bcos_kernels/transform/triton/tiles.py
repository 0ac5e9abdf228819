"""The tiles that the Triton kernels offer for a call; every function depends on its arguments alone."""

from __future__ import annotations

from functools import lru_cache

from ...core.candidate import Tile
from ...core.device import ASYNCHRONOUS, shared_memory
from ...gpu.sizes import power_of_two
from ..call import HALF, Call

__all__ = ["MOST_MAX_OUT", "SHARE", "columns_of_output", "padding", "splits", "strip", "tiles", "wgrad_tile"]

MOST_MAX_OUT = 16  # the most filters per output that fit a tile

SHARE = {"sm_80": 0.85, "sm_90": 0.6, "sm_100": 0.4, "gfx942": 0.5}
"""Architecture -> the rate of these kernels' products as a share of the vendor's; assumed, until ``tune`` measures."""


def tiles(call: Call, direction: str, given: bool) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first; none where there is no choice.

    ``given`` says whether a kernel before the product forms u; else the product forms it itself.
    """
    if call.depthwise and not given:
        return []
    if direction == "forward":
        columns = call.pack * call.group_outputs * columns_of_output(call)
        depth = call.taps * call.group_channels if call.flat else call.pack * call.group_channels
        return list(_tiles(call, call.pixels, columns, depth, columns_of_output(call), call.flat))
    found = _tiles(
        call, call.in_pixels, call.pack * call.group_channels, call.pack * call.group_filters, busy=not given
    )
    return [t for t in found if given or (t.m * t.n <= _most_fused(call.arch) and _forms_u(call, t))]


def wgrad_tile(call: Call, given: bool) -> Tile:
    """The tile of the product that forms dw: filters × channels of a tap, or of all taps if ``call.flat``.

    ``given`` is that of :func:`tiles`.
    """
    columns = call.taps * call.group_channels if call.flat else call.pack * call.group_channels
    found = _tiles(call, call.pack * call.group_filters, columns, call.pixels, busy=True)
    return found[0] if given else next(tile for tile in found if _forms_u(call, tile))


def _most_fused(arch: str) -> int:
    """The most values of a tile that leave registers to form u and t."""
    return 64 * 64 if arch.startswith("gfx") else 128 * 128 if arch in ASYNCHRONOUS else 64 * 128


def _forms_u(call: Call, tile: Tile) -> bool:
    """Whether shared memory holds the copies of a product that forms u itself: of grad, of y, and of its other operand.

    On AMD's GPUs only the operands of a product lie there.
    """
    if not call.arch.startswith("sm_"):
        return True
    copied = tile.k * (tile.m * call.out_dtype.itemsize * (1 if call.power == 1 else 2) + tile.n * call.dtype.itemsize)
    more = tile.k * tile.n * call.dtype.itemsize if call.arch in ASYNCHRONOUS else 0  # a product may still read it
    return (tile.stages - 1) * copied + more + 2048 <= shared_memory(call.arch)


def padding(call: Call) -> float:
    """The FLOP that the products compute, as a multiple of the FLOP that the call needs."""
    return call.pack if call.groups > 1 else columns_of_output(call) / call.max_out


def columns_of_output(call: Call) -> int:
    """The columns of a tile that the filters of one output take, a power of two."""
    return power_of_two(call.max_out)


@lru_cache(maxsize=4096)
def _tiles(
    call: Call, rows: int, columns: int, depth: int, least_columns: int = 16, busy: bool = False
) -> tuple[Tile, ...]:
    half = call.dtype in HALF
    stages = 2 if call.arch.startswith("gfx") or not half else 3
    shapes = [(128, 128), (128, 64), (64, 128), (64, 64), (64, 32)] if half else [(64, 64), (64, 32), (32, 32)]
    k = min(64 if half else 32, power_of_two(depth, 16))
    found: dict[Tile, None] = {}
    for m, n in shapes:
        m, n = min(m, power_of_two(rows, 16)), max(min(n, power_of_two(columns, 16)), least_columns)
        more = m * n >= 128 * 128 or ((busy or not half) and max(m, n) > (64 if half else 32))
        found[Tile(m, n, k, 8 if more else 4, stages)] = None
    return tuple(found)


def splits(rows: int, programs: int, step: int) -> int:
    """The number of parts into which the sum over rows that forms dw is split, so that its programs fill the device."""
    return max(1, min(-(-528 // programs), -(-rows // (4 * step)), 64))


def strip(width: int) -> int:
    """The pixels of a depthwise kernel's strip: as many as leave the fewest unused; of equally good ones, the most."""
    return min(range(8, 3, -1), key=lambda v: (-(-width // v) * v, -v)) if width > 4 else width
