"""The mean and the variance over a batch, over all of x or over groups: moments of parts, and what they come to."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.launch import cdiv, launch
from ..call import Call
from . import tiles
from .arguments import owner
from .formula import merge, merged
from .place import offsets, part_of

__all__ = ["of"]


@triton.jit
def norm_moments_kernel(
    x_ptr, mean_ptr, squares_ptr, positions, channels, position_stride, channel_stride, length, parts,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The mean and the sum of squares around it of each channel of a part, [images · parts, channels] fp32."""
    image, part, index, channel = part_of(parts, channels, BN)
    start = part * length
    end = tl.minimum(start + length, positions)
    n = tl.zeros((BM, 1), tl.float32)
    mean = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BN), tl.float32)
    for first in range(start, end, BM):
        position = first + tl.arange(0, BM)
        known = (position < end)[:, None]
        at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
        x = tl.load(x_ptr + at, mask=known & (channel < channels)[None, :], other=0.0).to(tl.float32)
        n, mean, squares = merge(n, mean, squares, known.to(tl.float32), x, 0.0)
    n, mean, squares = merged(n, mean, squares, 0)
    at = index * channels + channel
    tl.store(mean_ptr + at, mean, mask=channel < channels)
    tl.store(squares_ptr + at, squares, mask=channel < channels)


@triton.jit
def norm_merge_kernel(
    mean_ptr, squares_ptr, merged_mean_ptr, merged_ptr, items, columns, values, length, parts, count,
    VAR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Merges the items of [outer, items, columns] into [outer, columns]; with ``VAR`` to ``count`` values' variance.

    An item is a part of ``length`` of the ``values`` of a whole; the last of the ``parts`` of each whole is shorter.
    """
    program = tl.program_id(0)
    strips = tl.cdiv(columns, BN)
    column = program % strips * BN + tl.arange(0, BN)
    outer = (program // strips).to(tl.int64)
    n = tl.zeros((BM, 1), tl.float32)
    mean = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM, BN), tl.float32)
    for first in range(0, items, BM):
        item = first + tl.arange(0, BM)
        more = tl.minimum(length, values - item % parts * length)
        more = tl.where(item < items, more, 0).to(tl.float32)[:, None]
        at = (outer * items + item)[:, None] * columns + column[None, :]
        inside = (item < items)[:, None] & (column < columns)[None, :]
        their_mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
        their_squares = tl.load(squares_ptr + at, mask=inside, other=0.0)
        n, mean, squares = merge(n, mean, squares, more, their_mean, their_squares)
    n, mean, squares = merged(n, mean, squares, 0)
    if VAR:
        squares = tl.div_rn(squares, count)
    at = outer * columns + column
    tl.store(merged_mean_ptr + at, mean, mask=column < columns)
    tl.store(merged_ptr + at, squares, mask=column < columns)


def of(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of a dense x, in the shape of the call's statistics."""
    seen = tiles.view(call)
    m, n = tiles.tile(seen)
    strips = cdiv(seen.channels, n)
    length, parts = tiles.parts(seen, m, strips)
    moments = _pair(x, seen.images * parts, seen.channels)
    launch(
        norm_moments_kernel, (seen.images * parts * strips,), x, *moments, *seen[1:], length, parts, BM=m, BN=n
    )  # fmt: skip
    wholes, values = (call.batch, seen.positions) if call.spec.over == "group" else (1, call.batch * call.positions)
    items, shared = seen.images * parts // wholes, owner(call)[1]
    if items > 1 or shared == 1:
        kinds = seen.positions, length, parts
        moments = _merged(moments, wholes, items, seen.channels, *kinds, count=values if shared == 1 else None)
    if shared > 1:
        outer = wholes * seen.channels // shared
        moments = _merged(moments, outer, shared, 1, values, values, 1, count=values * shared)
    mean, var = moments
    return mean.view(call.statistics_shape), var.view(call.statistics_shape)


def _merged(moments, outer: int, items: int, columns: int, values: int, length: int, parts: int, count: int | None):
    m, n = tiles.fold_tile(items, columns)
    out = _pair(moments[0], outer, columns)
    launch(
        norm_merge_kernel, (outer * cdiv(columns, n),), *moments, *out, items, columns, values, length, parts,
        float(count or 1), VAR=count is not None, BM=m, BN=n,
    )  # fmt: skip
    return out


def _pair(like: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    mean, squares = (torch.empty((rows, columns), dtype=torch.float32, device=like.device) for _ in range(2))
    return mean, squares
