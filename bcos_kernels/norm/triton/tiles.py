"""The tiles and the parts in which the kernels walk x; every function depends on its arguments alone.

To the kernels x is ``[images, positions, channels]``, and one of the last two lies side by side in memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ...gpu.sizes import cdiv, power_of_two
from ..call import Call

__all__ = ["Items", "Row", "View", "of_items", "parts", "rows", "tile", "view"]

VALUES = 2048
"""The values of a tile of four warps."""
WHOLE, WHOLE_BACKWARD = 8192, 4096
"""The values of the largest tile that holds all channels of its positions; the backward keeps more beside it."""
PARTS = 1056
"""The programs that a sum is split into at most, so that they fill a device."""
COLUMNS, POSITIONS = 128, 1024
"""The channels of a tile where channels lie side by side, and its positions where those do."""


class View(NamedTuple):
    """x as the kernels see it: its sizes, and the strides of two of them; an image is a whole number of positions.

    Where no statistic belongs to a single image and channels lie side by side, all images are one.
    """

    images: int
    positions: int
    channels: int
    position_stride: int
    channel_stride: int


class Items(NamedTuple):
    """The sizes [outer, items, columns] of partial sums, and the strides of items and columns."""

    outer: int
    items: int
    columns: int
    item_stride: int
    column_stride: int


class Row(NamedTuple):
    """How the channels of a position are walked."""

    m: int
    """The positions of a tile."""
    n: int
    """Its channels."""
    whole: bool
    """Whether these are all channels."""
    warps: int


@lru_cache(maxsize=4096)
def view(call: Call) -> View:
    """How the kernels see x, which is dense in the memory format of the call."""
    batch, positions, channels = call.batch, call.positions, call.channels
    if not call.channels_last and positions > 1:
        return View(batch, positions, channels, 1, positions)
    if call.spec.over == "group":
        return View(batch, positions, channels, channels, 1)
    return View(1, batch * positions, channels, channels, 1)


@lru_cache(maxsize=4096)
def tile(x: View) -> tuple[int, int]:
    """The positions and channels of a tile."""
    positions, channels = power_of_two(x.positions), power_of_two(x.channels)
    if x.channel_stride == 1:
        n, m = _sides(channels, positions, COLUMNS)
    else:
        m, n = _sides(positions, channels, POSITIONS)
    return m, n


def _sides(inner: int, outer: int, most: int) -> tuple[int, int]:
    """The side of a tile that lies side by side in memory, at most ``most`` unless the other is short; the other."""
    first = min(inner, most, VALUES)
    second = min(outer, VALUES // first)
    return min(inner, VALUES // second), second


@lru_cache(maxsize=4096)
def parts(x: View, m: int, programs: int) -> tuple[int, int]:
    """The positions of a part, a multiple of m, and the parts of an image, of which ``programs`` more are started."""
    wanted = max(1, PARTS // (x.images * programs))
    length = cdiv(cdiv(x.positions, m), wanted) * m
    return length, cdiv(x.positions, length)


@lru_cache(maxsize=4096)
def rows(call: Call, x: View, most: int) -> Row:
    """How the channels of a position are walked: whole where a tile has at most ``most`` values.

    Tiles of fp64 have half as many values.
    """
    values, most = (VALUES // 2, most // 2) if call.dtype == torch.float64 else (VALUES, most)
    channels, least = power_of_two(x.channels), 1 if x.channel_stride == 1 else 16
    m = min(power_of_two(x.positions), max(least, values // channels))
    if m * channels <= most:
        return Row(m, channels, True, max(1, m * channels // (values // 4)))
    return Row(m, values // m, False, 4)


@lru_cache(maxsize=4096)
def of_items(shape: Items) -> tuple[int, int]:
    """The items and columns of a tile where items are added up: few columns, unless there are few items."""
    items, columns = power_of_two(shape.items), power_of_two(shape.columns)
    n = min(columns, max(8, VALUES // items))
    return min(items, max(1, VALUES // n)), n
