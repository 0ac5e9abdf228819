"""The norm of each filter: the weights that the products take, and the gradient through the division by the norm."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.formats import CHANNELS_LAST, channels_last
from ...gpu.functions import exact_ratio, exact_root, safe_inverse, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import power_of_two
from ..call import Call


@triton.jit
def weight_norm_fwd_kernel(
    w_ptr, alpha_ptr, out_ptr, K, CG,
    TAPS: tl.constexpr, OHWI: tl.constexpr, WRITE: tl.constexpr, RAW: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """alpha[f] = 1/‖w_f‖, 0 for a zero filter; with ``WRITE`` also ŵ = w/‖w‖, or w itself if ``RAW``, as OHWI.

    w [F, K] is in OIHW order, or in OHWI order if ``OHWI``. Source: B-cos Networks, eq. 3.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    f = tl.program_id(0)
    row = f.to(tl.int64) * K
    squares = tl.zeros((BN,), SUMS)
    for k0 in range(0, K, BN):
        k = k0 + tl.arange(0, BN)
        w = tl.load(w_ptr + row + k, mask=k < K, other=0.0).to(SUMS)
        squares += w * w
    norm = exact_root(tl.sum(squares, axis=0))
    tl.store(alpha_ptr + f, safe_inverse(norm, True))
    if WRITE:
        divisor = tl.where(RAW | (norm == 0), 1.0, norm)
        for k0 in range(0, K, BN):
            k = k0 + tl.arange(0, BN)
            source = k if OHWI else k % CG * TAPS + k // CG
            w = tl.load(w_ptr + row + source, mask=k < K, other=0.0).to(SUMS)
            tl.store(out_ptr + row + k, cast(exact_ratio(w, divisor), out_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def weight_norm_bwd_kernel(
    partial_ptr, w_ptr, alpha_ptr, dw_ptr, F, K, CG, splits,
    TAPS: tl.constexpr, OHWI: tl.constexpr, UNIT: tl.constexpr, RAW: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw = d = Σ_split partial; for unit filters it is projected: dw = alpha (d - ŵ (ŵ·d)).

    partial [splits, F, K] is OHWI, and its first part is overwritten with the sum; w, dw [F, K] are in the weight's
    own order. ``RAW`` means that the product took w itself, so that d is already multiplied by alpha.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    f = tl.program_id(0)
    row = f.to(tl.int64) * K
    alpha = tl.load(alpha_ptr + f) if UNIT else 1.0
    dot = tl.zeros((BN,), SUMS)
    for k0 in range(0, K, BN):
        k = k0 + tl.arange(0, BN)
        inside = k < K
        at = partial_ptr + row + k
        d = tl.zeros((BN,), SUMS)
        for _ in range(splits):
            d += tl.load(at, mask=inside, other=0.0).to(SUMS)
            at += F * K
        source = k if OHWI else k % CG * TAPS + k // CG
        if UNIT:
            dot += d * tl.load(w_ptr + row + source, mask=inside, other=0.0).to(SUMS)
            tl.store(partial_ptr + row + k, cast(d, partial_ptr.dtype.element_ty), mask=inside)
        else:
            tl.store(dw_ptr + row + source, cast(d, dw_ptr.dtype.element_ty), mask=inside)
    if UNIT:
        along = tl.sum(dot, axis=0) * alpha * alpha
        factor = 1.0 if RAW else alpha
        tl.debug_barrier()
        for k0 in range(0, K, BN):
            k = k0 + tl.arange(0, BN)
            inside = k < K
            source = k if OHWI else k % CG * TAPS + k // CG
            d = tl.load(partial_ptr + row + k, mask=inside, other=0.0).to(SUMS)
            w = tl.load(w_ptr + row + source, mask=inside, other=0.0).to(SUMS)
            dw = factor * (d - along * w)
            tl.store(dw_ptr + row + source, cast(dw, dw_ptr.dtype.element_ty), mask=inside)


class Weights(NamedTuple):
    """The weights as the products take them."""

    operand: Tensor
    """w or ŵ, ``[F, KH, KW, CG]`` in memory."""
    alpha: Tensor | None
    """1/‖w‖, ``[F]``, with which the product must be multiplied; None where the operand needs no factor."""
    inverse_norm: Tensor | None
    """1/‖w‖, ``[F]``; None where filters are not divided by their norm."""


def dense(weight: Tensor) -> Tensor:
    """The weight in OIHW or OHWI order without gaps in memory, copied only if it is not."""
    return weight if weight.is_contiguous(memory_format=CHANNELS_LAST[weight.dim()]) else weight.contiguous()


def _ohwi(call: Call, weight: Tensor) -> bool:
    """Whether the weight's memory order is [F, KH, KW, CG]."""
    return call.taps == 1 or call.group_channels == 1 or weight.is_contiguous(memory_format=CHANNELS_LAST[weight.dim()])


def prepare(call: Call, weight: Tensor) -> Weights:
    """The weights as the products take them, from a dense weight."""
    ohwi = _ohwi(call, weight)
    if not call.unit:
        operand = weight if ohwi and weight.dtype == call.dtype else channels_last(weight.to(call.dtype))
        return Weights(operand, None, None)
    raw = call.raw_weights
    inverse = torch.empty(call.filters, dtype=call.sums, device=weight.device)
    operand = weight
    if not (raw and ohwi):
        operand = torch.empty_like(weight, dtype=call.dtype, memory_format=CHANNELS_LAST[weight.dim()])
    depth = call.group_channels * call.taps
    launch(
        weight_norm_fwd_kernel, (call.filters,), weight, inverse, operand, depth, call.group_channels,
        TAPS=call.taps, OHWI=ohwi, WRITE=operand is not weight, RAW=raw, BN=min(1024, power_of_two(depth)),
    )  # fmt: skip
    return Weights(operand, inverse if raw else None, inverse)


def gradient(call: Call, partial: Tensor, weight: Tensor, weights: Weights) -> Tensor:
    """dw from the partial sums ``[splits, F, KH, KW, CG]`` of the operand's gradient."""
    dw = torch.empty_like(weight)
    depth = call.group_channels * call.taps
    launch(
        weight_norm_bwd_kernel, (call.filters,), partial, weight, weights.inverse_norm, dw, call.filters, depth,
        call.group_channels, partial.numel() // weight.numel(),
        TAPS=call.taps, OHWI=_ohwi(call, weight), UNIT=call.unit, RAW=weights.alpha is not None,
        BN=min(1024, power_of_two(depth)),
    )  # fmt: skip
    return dw
