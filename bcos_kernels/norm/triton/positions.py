"""The norm at positions and of tokens: a program has all channels of its positions, which is one pass each way.

Where the channels of a position do not fit the registers, the program reads them again, from the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import exact_ratio, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import sums, tiles
from .arguments import number
from .formula import inverse_std, merge, merged, normalized, of_all, of_var, of_x, var_gradient
from .place import offsets, per_channel
from .sums import Sums

__all__ = ["backward", "forward", "second"]


@triton.jit
def norm_position_fwd_kernel(
    x_ptr, gamma_ptr, beta_ptr, y_ptr, mean_ptr, var_ptr, positions, channels, position_stride, channel_stride, parts,
    eps, CENTERED: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y, and the mean and the variance of each position in fp32. Source: B-cos Alignment, section 4.2."""
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
    program = tl.program_id(0)
    image = program // parts
    position = program % parts * BM + tl.arange(0, BM)
    known = position < positions
    start = image.to(tl.int64) * positions * channels + position.to(tl.int64) * position_stride
    pivot = tl.load(x_ptr + start, mask=known, other=0.0).to(SUMS)
    n = tl.zeros((1, BN), SUMS)
    mean = tl.zeros((BM, BN), SUMS)
    squares = tl.zeros((BM, BN), SUMS)
    x = tl.zeros((BM, BN), SUMS)
    for first in range(0, BN if WHOLE else channels, BN):
        channel = first + tl.arange(0, BN)
        at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
        inside = known[:, None] & (channel < channels)[None, :]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
        more = (channel < channels).to(SUMS)[None, :]
        n, mean, squares = merge(n, mean, squares, more, tl.where(inside, x - pivot[:, None], 0.0), 0.0)
    n, mean, squares = merged(n, mean, squares, 1)
    mean += pivot
    var = exact_ratio(squares, n)
    row = image.to(tl.int64) * positions + position
    tl.store(mean_ptr + row, mean, mask=known)
    tl.store(var_ptr + row, var, mask=known)
    r = inverse_std(var, eps)
    shift = mean if CENTERED else tl.zeros((BM,), SUMS)
    for first in range(0, BN if WHOLE else channels, BN):
        channel = first + tl.arange(0, BN)
        at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
        inside = known[:, None] & (channel < channels)[None, :]
        if not WHOLE:
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
        gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)
        beta = per_channel(beta_ptr, channel, channels, 0.0, SUMS)
        y = normalized(x, shift[:, None], r[:, None], gamma[None, :], beta[None, :])
        tl.store(y_ptr + at, cast(y, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def norm_position_bwd_kernel(
    grad_ptr, x_ptr, gamma_ptr, mean_ptr, var_ptr, dvar_ptr, dx_ptr, products_ptr, grads_ptr,
    positions, channels, position_stride, channel_stride, length, parts, count, eps,
    CENTERED: tl.constexpr, FROZEN: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx, and the sums that form dgamma and dbeta over a part, [images · parts, channels] fp32; either may be None.

    Unless all channels fit one tile the sums of a part are kept in memory between its steps.
    """
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    READS_X: tl.constexpr = not FROZEN or products_ptr is not None or dvar_ptr is not None
    program = tl.program_id(0)
    image = program // parts
    start = program % parts * length
    end = tl.minimum(start + length, positions)
    gamma = per_channel(gamma_ptr, tl.arange(0, BN), channels, 1.0, SUMS)[None, :]
    all_products = tl.zeros((BM, BN), SUMS)
    all_grads = tl.zeros((BM, BN), SUMS)
    for first in range(start, end, BM):
        position = first + tl.arange(0, BM)
        known = position < end
        row = image.to(tl.int64) * positions + position
        mean = tl.load(mean_ptr + row, mask=known, other=0.0)
        r = inverse_std(tl.load(var_ptr + row, mask=known, other=1.0), eps)
        of_dvar = tl.zeros((BM,), SUMS)
        if dvar_ptr is not None:
            of_dvar = of_var(tl.load(dvar_ptr + row, mask=known, other=0.0), count)
        shift = mean if CENTERED else tl.zeros((BM,), SUMS)
        grad = tl.zeros((BM, BN), SUMS)
        x = tl.zeros((BM, BN), SUMS)
        products = tl.zeros((BM, BN), SUMS)
        grads = tl.zeros((BM, BN), SUMS)
        if WHOLE or (dx_ptr is not None and (CENTERED or not FROZEN)):
            for c0 in range(0, BN if WHOLE else channels, BN):
                channel = c0 + tl.arange(0, BN)
                at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
                inside = known[:, None] & (channel < channels)[None, :]
                grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
                if not WHOLE:
                    gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)[None, :]
                scaled = grad * gamma  # a tile of all channels is itself the sum of tiles
                grads = scaled if WHOLE else grads + scaled
                if READS_X if WHOLE else not FROZEN:
                    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
                    product = scaled * (x - shift[:, None])
                    products = product if WHOLE else products + product
        of_products = tl.sum(products, axis=1)
        of_grads = tl.sum(grads, axis=1)
        for c0 in range(0, BN if WHOLE else channels, BN):
            channel = c0 + tl.arange(0, BN)
            at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
            inside = known[:, None] & (channel < channels)[None, :]
            if not WHOLE:
                gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)[None, :]
                grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
                if READS_X:
                    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(SUMS)
            if products_ptr is not None:
                product = grad * (x - shift[:, None]) * r[:, None]
                if WHOLE:
                    all_products += product
                    all_grads += grad
                else:
                    kept = program.to(tl.int64) * channels + channel
                    earlier = (channel < channels) & (first > start)
                    of_part = tl.sum(product, axis=0) + tl.load(products_ptr + kept, mask=earlier, other=0.0)
                    total = tl.sum(grad, axis=0) + tl.load(grads_ptr + kept, mask=earlier, other=0.0)
                    tl.store(products_ptr + kept, of_part, mask=channel < channels)
                    tl.store(grads_ptr + kept, total, mask=channel < channels)
            if dx_ptr is not None:
                dx = grad * gamma
                if not FROZEN:
                    dx += of_x(r, of_products * r, count)[:, None] * (x - mean[:, None])
                if CENTERED:
                    dx += of_all(of_grads, count)[:, None]
                dx *= r[:, None]
                if dvar_ptr is not None:  # a second derivative's gradient of var
                    dx += of_dvar[:, None] * (x - mean[:, None])
                tl.store(dx_ptr + at, cast(dx, dx_ptr.dtype.element_ty), mask=inside)
        if not WHOLE:
            tl.debug_barrier()
    if WHOLE and products_ptr is not None:
        channel = tl.arange(0, BN)
        at = program.to(tl.int64) * channels + channel
        tl.store(products_ptr + at, tl.sum(all_products, axis=0), mask=channel < channels)
        tl.store(grads_ptr + at, tl.sum(all_grads, axis=0), mask=channel < channels)


@triton.jit
def norm_position_second_kernel(
    grad_ptr, v_ptr, gamma_ptr, var_ptr, dgrad_ptr, dvar_ptr, products_ptr,
    positions, channels, position_stride, channel_stride, length, parts, eps,
    CENTERED: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dgrad = gamma · r · (v − [centered] mean of v), the gradient of each position's var, and the sums for dgamma.

    The latter are those of a part, [images · parts, channels]. Either of the last two may be None; both are fp32.
    Unless all channels fit one tile the sums of a part are kept in memory between its steps.
    """
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    program = tl.program_id(0)
    image = program // parts
    start = program % parts * length
    end = tl.minimum(start + length, positions)
    summed = tl.zeros((BM, BN), SUMS)
    for first in range(start, end, BM):
        position = first + tl.arange(0, BM)
        known = position < end
        row = image.to(tl.int64) * positions + position
        r = inverse_std(tl.load(var_ptr + row, mask=known, other=1.0), eps)
        v = tl.zeros((BM, BN), SUMS)
        total = tl.zeros((BM, BN), SUMS)
        if WHOLE or CENTERED:
            for c0 in range(0, BN if WHOLE else channels, BN):
                channel = c0 + tl.arange(0, BN)
                at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
                v = tl.load(v_ptr + at, mask=known[:, None] & (channel < channels)[None, :], other=0.0).to(SUMS)
                total += v
        shift = tl.sum(total, axis=1) / channels if CENTERED else tl.zeros((BM,), SUMS)
        products = tl.zeros((BM, BN), SUMS)
        for c0 in range(0, BN if WHOLE else channels, BN):
            channel = c0 + tl.arange(0, BN)
            at = offsets(image, position, channel, positions, channels, position_stride, channel_stride)
            inside = known[:, None] & (channel < channels)[None, :]
            if not WHOLE:
                v = tl.load(v_ptr + at, mask=inside, other=0.0).to(SUMS)
            gamma = per_channel(gamma_ptr, channel, channels, 1.0, SUMS)[None, :]
            from_mean = v - shift[:, None]
            tl.store(dgrad_ptr + at, cast(from_mean * r[:, None] * gamma, dgrad_ptr.dtype.element_ty), mask=inside)
            if dvar_ptr is not None or products_ptr is not None:
                product = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS) * from_mean
                products += product * gamma
                if products_ptr is not None:
                    if WHOLE:
                        summed += product * r[:, None]
                    else:
                        kept = program.to(tl.int64) * channels + channel
                        earlier = (channel < channels) & (first > start)
                        part = tl.sum(product * r[:, None], axis=0)
                        part += tl.load(products_ptr + kept, mask=earlier, other=0.0)
                        tl.store(products_ptr + kept, part, mask=channel < channels)
        if dvar_ptr is not None:
            tl.store(dvar_ptr + row, var_gradient(r, tl.sum(products, axis=1)), mask=known)
        if not WHOLE:
            tl.debug_barrier()
    if WHOLE and products_ptr is not None:
        channel = tl.arange(0, BN)
        at = program.to(tl.int64) * channels + channel
        tl.store(products_ptr + at, tl.sum(summed, axis=0), mask=channel < channels)


def forward(call: Call, x: Tensor, gamma, beta, y: Tensor) -> tuple[Tensor, Tensor]:
    """Writes y, dense as x is; the mean and the variance of each position."""
    seen = tiles.view(call)
    row = tiles.rows(call, seen, tiles.WHOLE)
    parts = cdiv(seen.positions, row.m)
    mean, var = (torch.empty(call.statistics_shape, dtype=call.sums, device=x.device) for _ in range(2))
    launch(
        norm_position_fwd_kernel, (seen.images * parts,),
        x, gamma, beta, y, mean, var, *seen[1:], parts, call.spec.eps,
        CENTERED=call.spec.centered, WHOLE=row.whole, BM=row.m, BN=row.n, warps=row.warps,
    )  # fmt: skip
    return mean, var


def backward(
    call: Call, grad: Tensor, x: Tensor, gamma, mean, var, dvar, frozen: bool, dx: Tensor | None, summed: bool
) -> Sums | None:
    """Writes dx unless it is None; with ``summed`` returns the sums of each channel, ``[C]``."""
    seen, row, length, parts = _parts(call, summed)
    found = None
    if summed:
        products, grads = (_sums_of_parts(call, seen.images * parts, x) for _ in range(2))
        found = products, grads
    launch(
        norm_position_bwd_kernel, (seen.images * parts,),
        grad, x, gamma, mean, var, dvar, dx, *(found or (None, None)), *seen[1:], length, parts,
        number(call, seen.channels), call.spec.eps,
        CENTERED=call.spec.centered, FROZEN=frozen, WHOLE=row.whole, BM=row.m, BN=row.n, warps=row.warps,
    )  # fmt: skip
    return found and sums.folded(call, found)


def second(call: Call, grad: Tensor, v: Tensor, gamma, var, dvar: Tensor | None, dgrad: Tensor, summed: bool):
    """Writes dgrad, and dvar unless it is None; with ``summed`` returns dgamma, ``[C]``."""
    seen, row, length, parts = _parts(call, summed)
    products = _sums_of_parts(call, seen.images * parts, v) if summed else None
    launch(
        norm_position_second_kernel, (seen.images * parts,),
        grad, v, gamma, var, dgrad, dvar, products, *seen[1:], length, parts, call.spec.eps,
        CENTERED=call.spec.centered, WHOLE=row.whole, BM=row.m, BN=row.n, warps=row.warps,
    )  # fmt: skip
    return None if products is None else sums.folded(call, (None, products))[1]


def _parts(call: Call, summed: bool) -> tuple[tiles.View, tiles.Row, int, int]:
    """How x and its rows are walked, the positions of a part and the parts of an image: several steps if ``summed``."""
    seen = tiles.view(call)
    row = tiles.rows(call, seen, tiles.WHOLE_BACKWARD)
    length, parts = tiles.parts(seen, row.m, 1) if summed else (row.m, cdiv(seen.positions, row.m))
    return seen, row, length, parts


def _sums_of_parts(call: Call, parts: int, like: Tensor) -> Tensor:
    return torch.empty((parts, call.channels), dtype=call.sums, device=like.device)
