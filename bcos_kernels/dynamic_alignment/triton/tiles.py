"""The tiles of the Triton kernels; every function depends on its arguments alone."""

from __future__ import annotations

import torch

from ...core.candidate import Tile
from ...core.device import ASYNCHRONOUS
from ...gpu.sizes import cdiv, power_of_two
from ..call import Call

__all__ = [
    "VALUES", "dh", "dh_signs", "du", "dweight", "dweight_signs", "forward", "patch_stride", "patches", "signs",
    "splits",
]  # fmt: skip

PROGRAMS = 132
"""The programs that a device should at least have, if the call is large enough."""
VALUES = 1024
"""The values of an elementwise tile."""


def _side(length: int, most: int) -> int:
    """The side of a tile: a power of two that holds ``length``, at least 16 and at most ``most``."""
    return min(most, max(16, power_of_two(length)))


def _tile(call: Call, rows: int, columns: int, depth: int, deepest: int, busy: bool = True) -> Tile:
    """The tile of a product [rows, depth] × [depth, columns], in few rows where there would be too few programs.

    ``busy`` kernels have several tiles of sums.
    """
    half = call.dtype.itemsize == 2
    n, k = _side(columns, 64 if half else 32), _side(depth, deepest if half else 32 if call.tf32 else 16)
    m = _side(rows, 64 if not busy or (half and call.arch in ASYNCHRONOUS) else 32)
    while m > 16 and cdiv(rows, m) * cdiv(columns, n) < PROGRAMS:
        m //= 2
    return Tile(m, n, k, 8 if busy and m * n >= 4096 else 4, 3 if half else 2)


def _step(call: Call) -> int:
    """The most of the rank that one step takes in half precision; more spills registers on GPUs such as sm_86."""
    return 128 if call.arch in ASYNCHRONOUS else 64


def forward(call: Call) -> Tile:
    """Pixels × outputs; the depth is the rank."""
    return _tile(call, call.pixels, call.outputs, call.rank, _step(call))


def du(call: Call, sites: int) -> Tile:
    """Pixels × values of the patch, with the depth of :func:`forward`."""
    return _tile(call, sites, call.patch, call.rank, _step(call), busy=call.rank > 64)


def dh(call: Call) -> Tile:
    """Pixels × values of h; the depth is a part of the patch."""
    return _tile(call, call.pixels, call.rank, call.patch, 64)


def dweight(call: Call, rows: int, columns: int) -> Tile:
    """Values of the patch, or of h, × columns; the depth is a part of the pixels."""
    half = call.dtype == torch.bfloat16
    return Tile(_side(rows, 64), _side(columns, 64 if half else 32), 64 if half else 32, 4, 3 if half else 2)


def dh_signs(call: Call) -> Tile:
    """As :func:`dh`, where the depth is that of the dynamic weights."""
    return _tile(call, call.pixels, call.rank, call.rank, 128)


def dweight_signs(call: Call) -> Tile:
    """Values of the patch × values of h; the depth is that of the dynamic weights."""
    return _tile(call, call.patch * PROGRAMS, call.rank, call.rank, 128)


def signs(call: Call) -> int:
    """The depth of a product with gradients of dynamic weights, which are formed for it."""
    return 16 if call.dtype == torch.float64 else 32


def patches(call: Call) -> tuple[int, int]:
    """Pixels and values of the patch of a tile that is copied."""
    n = min(64, power_of_two(call.patch))
    return VALUES // n, n


def patch_stride(call: Call) -> int:
    """The distance of two pixels' patches in memory, with which rows begin at whole vectors."""
    return cdiv(call.patch, 16) * 16


def splits(programs: int, most: int) -> int:
    """The parts of a sum, at most ``most``, so that ``programs`` times as many fill a device."""
    return max(1, min(2 * PROGRAMS // programs, most, 64))
