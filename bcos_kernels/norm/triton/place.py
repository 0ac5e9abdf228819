"""Which values of x a program works on, in Triton; x is [images, positions, channels]."""

import triton
import triton.language as tl

from ...gpu.functions import widened


@triton.jit
def part_of(parts, channels, BN: tl.constexpr):
    """(image, part of the image, index of both, the program's channels): channels change fastest, then parts."""
    program = tl.program_id(0)
    strips = tl.cdiv(channels, BN)
    channel = program % strips * BN + tl.arange(0, BN)
    index = program // strips
    return index // parts, index % parts, index.to(tl.int64), channel


@triton.jit
def offsets(image, position, channel, positions, channels, position_stride, channel_stride):
    """Where the values of a tile lie; every product is formed in 64 bits."""
    start = image.to(tl.int64) * positions * channels
    rows = start + position.to(tl.int64) * position_stride
    return rows[:, None] + (channel.to(tl.int64) * channel_stride)[None, :]


@triton.jit
def row_of(columns, BN: tl.constexpr):
    """(outer, the program's columns) of [outer, columns]; columns change fastest."""
    program = tl.program_id(0)
    strips = tl.cdiv(columns, BN)
    return (program // strips).to(tl.int64), program % strips * BN + tl.arange(0, BN)


@triton.jit
def items_of(outer, item, column, items, columns, item_stride, column_stride):
    """Where the values of a tile of [outer, items, columns] lie, and which of them there are; outer is of 64 bits."""
    rows = outer * items * columns + item.to(tl.int64) * item_stride
    at = rows[:, None] + (column.to(tl.int64) * column_stride)[None, :]
    return at, (item < items)[:, None] & (column < columns)[None, :]


@triton.jit
def per_channel(pointer, channel, channels, default, SUMS: tl.constexpr):
    """A value of each channel in the dtype ``SUMS``, or the default where there is no such tensor."""
    values = tl.full(channel.shape, default, SUMS)
    if pointer is not None:
        values = tl.load(pointer + channel, mask=channel < channels, other=0.0).to(SUMS)
    return values


@triton.jit
def of_owner(pointer, image, channel, channels, groups, group_channels, default, SUMS: tl.constexpr):
    """The statistic that each channel of an image belongs to, in the dtype ``SUMS``."""
    values = tl.full(channel.shape, default, SUMS)
    if pointer is not None:
        at = image.to(tl.int64) * groups + channel // group_channels
        values = tl.load(pointer + at, mask=channel < channels, other=0.0).to(SUMS)
    return values


@triton.jit
def pivot_of_owner(x_ptr, image, channel, channels, positions, channel_stride, groups, group_channels):
    """The first of the values that share a channel's statistic. Values less it have short means and sums of squares."""
    first = tl.where(groups > 0, image, 0).to(tl.int64) * positions * channels
    at = first + (channel // group_channels * group_channels).to(tl.int64) * channel_stride
    return widened(tl.load(x_ptr + at, mask=channel < channels, other=0.0))
