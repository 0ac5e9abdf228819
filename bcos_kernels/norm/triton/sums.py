"""The sums of a backward: of the gradient, and of its products with x, over positions, parts and groups.

Each program adds up its part and writes it; a second kernel adds up the parts, in an order that is always the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import sums_of
from ...gpu.launch import launch
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import owner
from .formula import inverse_std
from .place import items_of, of_owner, offsets, part_of, row_of

__all__ = ["Sums", "folded", "of_channels", "of_groups"]

Sums = tuple[Tensor | None, Tensor]
"""Σ grad · (x − shift) · r, or None where it is not needed, and Σ grad; both in the dtype of sums."""


@triton.jit
def norm_sums_kernel(
    grad_ptr, x_ptr, mean_ptr, var_ptr, products_ptr, grads_ptr,
    positions, channels, position_stride, channel_stride, length, parts, groups, group_channels, eps,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The two sums of each channel of a part, [images · parts, channels]; ``products_ptr`` may be None."""
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    image, part, index, channel = part_of(parts, channels, BN)
    start = part * length
    end = tl.minimum(start + length, positions)
    shift = of_owner(mean_ptr, image, channel, channels, groups, group_channels, 0.0, SUMS)
    products = tl.zeros((BM, BN), SUMS)
    grads = tl.zeros((BM, BN), SUMS)
    for first in range(start, end, BM):
        position = first + tl.arange(0, BM)
        at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
        inside = (position < end)[:, None] & (channel < channels)[None, :]
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
        grads += grad
        if products_ptr is not None:
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
            products += grad * (x - shift[None, :])
    at = index * channels + channel
    tl.store(grads_ptr + at, tl.sum(grads, axis=0), mask=channel < channels)
    if products_ptr is not None:
        r = inverse_std(of_owner(var_ptr, image, channel, channels, groups, group_channels, 1.0, SUMS), eps)
        tl.store(products_ptr + at, tl.sum(products, axis=0) * r, mask=channel < channels)


@triton.jit
def norm_fold_kernel(
    products_ptr, grads_ptr, gamma_ptr, folded_products_ptr, folded_grads_ptr,
    items, columns, item_stride, column_stride, groups, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Adds up the items of [outer, items, columns] into [outer, columns]; ``products_ptr`` may be None.

    With gamma an item is a channel and a column one of ``groups`` groups of an image; it is multiplied by its gamma.
    """
    SUMS: tl.constexpr = grads_ptr.dtype.element_ty
    outer, column = row_of(columns, BN)
    products = tl.zeros((BM, BN), SUMS)
    grads = tl.zeros((BM, BN), SUMS)
    for first in range(0, items, BM):
        item = first + tl.arange(0, BM)
        at, inside = items_of(outer, item, column, items, columns, item_stride, column_stride)
        factor = tl.full((BM, BN), 1.0, SUMS)
        if gamma_ptr is not None:
            channel = (column % groups * items)[None, :] + item[:, None]
            factor = tl.load(gamma_ptr + channel, mask=inside, other=0.0).to(SUMS)
        grads += tl.load(grads_ptr + at, mask=inside, other=0.0) * factor
        if products_ptr is not None:
            products += tl.load(products_ptr + at, mask=inside, other=0.0) * factor
    at = outer * columns + column
    tl.store(folded_grads_ptr + at, tl.sum(grads, axis=0), mask=column < columns)
    if products_ptr is not None:
        tl.store(folded_products_ptr + at, tl.sum(products, axis=0), mask=column < columns)


def of_channels(call: Call, grad: Tensor, x: Tensor, mean, var, with_products: bool) -> Sums:
    """The sums of each channel, ``[C]``; over groups those of each image, ``[N, C]``."""
    seen = tiles.view(call)
    m, n = tiles.tile(seen)
    strips = cdiv(seen.channels, n)
    length, parts = tiles.parts(seen, m, strips)
    sums = _empty(call, grad, (seen.images * parts, seen.channels), with_products)
    launch(
        norm_sums_kernel, (seen.images * parts * strips,),
        grad, x, mean if call.spec.centered else None, var, *sums, *seen[1:], length, parts, *owner(call),
        call.spec.eps, BM=m, BN=n,
    )  # fmt: skip
    outer = call.batch if call.spec.over == "group" else 1
    items = seen.images * parts // outer
    if items == 1 and outer > 1:
        return sums
    return _folded(call, sums, tiles.Items(outer, items, seen.channels, seen.channels, 1))


def of_groups(call: Call, sums: Sums, gamma: Tensor | None) -> Sums:
    """The sums of all values that share a statistic, times gamma, from those of channels."""
    channels = owner(call)[1]
    shape = tiles.Items(1, channels, sums[1].numel() // channels, 1, channels)
    return _folded(call, sums, shape, gamma, call.channels // channels)


def folded(call: Call, sums: Sums) -> Sums:
    """The sums of each channel, ``[C]``, from those of its parts, ``[parts, C]``; those of one image are both."""
    if sums[1].dim() == 1:
        return sums
    parts, channels = sums[1].shape
    return _folded(call, sums, tiles.Items(1, parts, channels, channels, 1))


def _folded(call: Call, sums: Sums, shape: tiles.Items, gamma: Tensor | None = None, groups: int = 1) -> Sums:
    m, n = tiles.of_items(shape)
    of_all = (shape.columns,) if shape.outer == 1 else (shape.outer, shape.columns)
    out = _empty(call, sums[1], of_all, sums[0] is not None)
    launch(
        norm_fold_kernel, (shape.outer * cdiv(shape.columns, n),), *sums, gamma, *out, *shape[1:], groups, BM=m, BN=n
    )  # fmt: skip
    return out


def _empty(call: Call, like: Tensor, shape: tuple[int, ...], with_products: bool) -> Sums:
    grads = torch.empty(shape, dtype=call.sums, device=like.device)
    return torch.empty_like(grads) if with_products else None, grads
