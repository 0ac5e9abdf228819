"""The mean and the variance over a batch, over all of x or over groups: moments of parts, and what they come to."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import exact_ratio, sums_of
from ...gpu.launch import launch
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import number, owner
from .formula import merge, merged
from .place import items_of, offsets, part_of, pivot_of_owner, row_of

__all__ = ["of"]


@triton.jit
def norm_moments_kernel(
    x_ptr, mean_ptr, squares_ptr, positions, channels, position_stride, channel_stride, length, parts,
    groups, group_channels, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The mean less the pivot, and the sum of squares around it, of each channel of a part, [images · parts, channels].

    Without the pivot the means of parts would be rounded by more than they differ where x is far from 0.
    """
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
    image, part, index, channel = part_of(parts, channels, BN)
    start = part * length
    end = tl.minimum(start + length, positions)
    pivot = pivot_of_owner(x_ptr, image, channel, channels, positions, channel_stride, groups, group_channels)
    n = tl.zeros((BM, 1), SUMS)
    mean = tl.zeros((BM, BN), SUMS)
    squares = tl.zeros((BM, BN), SUMS)
    for first in range(start, end, BM):
        position = first + tl.arange(0, BM)
        known = (position < end)[:, None]
        at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
        x = tl.load(x_ptr + at, mask=known & (channel < channels)[None, :], other=0.0).to(SUMS)
        n, mean, squares = merge(n, mean, squares, known.to(SUMS), tl.where(known, x - pivot[None, :], 0.0), 0.0)
    n, mean, squares = merged(n, mean, squares, 0)
    at = index * channels + channel
    tl.store(mean_ptr + at, mean, mask=channel < channels)
    tl.store(squares_ptr + at, squares, mask=channel < channels)


@triton.jit
def norm_merge_kernel(
    mean_ptr, squares_ptr, x_ptr, merged_mean_ptr, merged_ptr, items, columns, item_stride, column_stride,
    values, length, parts, count, outer_stride, groups, image_stride, group_stride, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Merges the items of [outer, items, columns] into [outer, columns].

    An item is a part of ``length`` of the ``values`` of a whole; the last of the ``parts`` of each whole is shorter.
    Unless ``x_ptr`` is None, the results are the mean, with the pivot added, and the variance of ``count`` values. The
    last four numbers lead to the pivots: a column is one of ``groups`` groups of an image.
    """
    SUMS: tl.constexpr = mean_ptr.dtype.element_ty
    outer, column = row_of(columns, BN)
    n = tl.zeros((BM, 1), SUMS)
    mean = tl.zeros((BM, BN), SUMS)
    squares = tl.zeros((BM, BN), SUMS)
    for first in range(0, items, BM):
        item = first + tl.arange(0, BM)
        more = tl.minimum(length, values - item % parts * length)
        more = tl.where(item < items, more, 0).to(SUMS)[:, None]
        at, inside = items_of(outer, item, column, items, columns, item_stride, column_stride)
        their_mean = tl.load(mean_ptr + at, mask=inside, other=0.0)
        their_squares = tl.load(squares_ptr + at, mask=inside, other=0.0)
        n, mean, squares = merge(n, mean, squares, more, their_mean, their_squares)
    n, mean, squares = merged(n, mean, squares, 0)
    if x_ptr is not None:
        squares = exact_ratio(squares, tl.full((BN,), count, SUMS))
        wide = column.to(tl.int64)
        first = outer * outer_stride + wide // groups * image_stride + wide % groups * group_stride
        mean += tl.load(x_ptr + first, mask=column < columns, other=0.0).to(SUMS)
    at = outer * columns + column
    tl.store(merged_mean_ptr + at, mean, mask=column < columns)
    tl.store(merged_ptr + at, squares, mask=column < columns)


def of(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of a dense x, in the shape of the call's statistics."""
    seen = tiles.view(call)
    m, n = tiles.tile(seen)
    strips = cdiv(seen.channels, n)
    length, parts = tiles.parts(seen, m, strips)
    groups, shared = owner(call)
    moments = _pair(call, x, (seen.images * parts, seen.channels))
    launch(
        norm_moments_kernel, (seen.images * parts * strips,), x, *moments, *seen[1:], length, parts, groups, shared,
        BM=m, BN=n,
    )  # fmt: skip
    images, values = (call.batch, seen.positions) if groups else (1, call.batch * call.positions)
    items, image = seen.images * parts // images, seen.positions * seen.channels
    if items > 1 or shared == 1:
        last = ((image, 1, seen.channel_stride, 0), call.statistics_shape) if shared == 1 else ()
        shape = tiles.Items(images, items, seen.channels, seen.channels, 1)
        moments = _merged(call, x, moments, shape, (seen.positions, length, parts), values, *last)
    if shared > 1:
        shape = tiles.Items(1, shared, images * seen.channels // shared, 1, shared)
        pivots = 0, max(groups, 1), image, shared * seen.channel_stride
        moments = _merged(call, x, moments, shape, (values, values, 1), values * shared, pivots, call.statistics_shape)
    return moments


def _merged(
    call: Call,
    x: Tensor,
    moments,
    shape: tiles.Items,
    lengths: tuple[int, int, int],
    count: int,
    pivots=None,
    final=None,
) -> tuple[Tensor, Tensor]:
    """Starts the kernel that merges. The last time it forms tensors of the shape ``final``, with ``pivots`` added."""
    m, n = tiles.of_items(shape)
    out = _pair(call, x, final or (shape.outer, shape.columns))
    launch(
        norm_merge_kernel, (shape.outer * cdiv(shape.columns, n),), *moments, None if final is None else x, *out,
        *shape[1:], *lengths, number(call, count), *(pivots or (0, 1, 0, 0)), BM=m, BN=n,
    )  # fmt: skip
    return out


def _pair(call: Call, like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mean, squares = (torch.empty(shape, dtype=call.sums, device=like.device) for _ in range(2))
    return mean, squares
