"""The norm of each filter: what the products take as weights, and the gradient through the division."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.launch import channels_last, launch
from ..call import Call, power_of_two
from .formula import cast, safe_inverse


@triton.jit
def weight_norm_fwd_kernel(
    w_ptr, alpha_ptr, out_ptr, K, CG,
    TAPS: tl.constexpr, OHWI: tl.constexpr, WRITE: tl.constexpr, RAW: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """alpha[f] = 1/‖w_f‖ (0 for a zero filter), fp32; with ``WRITE`` also ŵ = w/‖w‖, or w itself if ``RAW``, as OHWI.

    w [F, K] in its own order, OIHW unless ``OHWI``. Source: B-cos Networks, eq. 3.
    """
    f = tl.program_id(0)
    row = f.to(tl.int64) * K
    squares = tl.zeros((BN,), tl.float32)
    for k0 in range(0, K, BN):
        k = k0 + tl.arange(0, BN)
        w = tl.load(w_ptr + row + k, mask=k < K, other=0.0).to(tl.float32)
        squares += w * w
    norm = tl.sqrt_rn(tl.sum(squares, axis=0))
    tl.store(alpha_ptr + f, safe_inverse(norm))
    if WRITE:
        divisor = tl.where(RAW | (norm == 0), 1.0, norm)
        for k0 in range(0, K, BN):
            k = k0 + tl.arange(0, BN)
            source = k if OHWI else k % CG * TAPS + k // CG
            w = tl.load(w_ptr + row + source, mask=k < K, other=0.0).to(tl.float32)
            tl.store(out_ptr + row + k, cast(w / divisor, out_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def weight_norm_bwd_kernel(
    partial_ptr, w_ptr, alpha_ptr, dw_ptr, F, K, CG, splits,
    TAPS: tl.constexpr, OHWI: tl.constexpr, UNIT: tl.constexpr, RAW: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw = Σ_split partial, and for unit weights its projection: with d that sum, dw = alpha (d - ŵ (ŵ·d)).

    partial [splits, F, K], OHWI, whose first share is overwritten with the sum; w, dw [F, K] in the weight's own order.
    ``RAW``: the product took w itself, and d has the factor alpha already.
    """
    f = tl.program_id(0)
    row = f.to(tl.int64) * K
    alpha = tl.load(alpha_ptr + f) if UNIT else 1.0
    dot = tl.zeros((BN,), tl.float32)
    for k0 in range(0, K, BN):
        k = k0 + tl.arange(0, BN)
        inside = k < K
        at = partial_ptr + row + k
        d = tl.zeros((BN,), tl.float32)
        for _ in range(splits):
            d += tl.load(at, mask=inside, other=0.0).to(tl.float32)
            at += F * K
        source = k if OHWI else k % CG * TAPS + k // CG
        if UNIT:
            dot += d * tl.load(w_ptr + row + source, mask=inside, other=0.0).to(tl.float32)
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
            d = tl.load(partial_ptr + row + k, mask=inside, other=0.0).to(tl.float32)
            w = tl.load(w_ptr + row + source, mask=inside, other=0.0).to(tl.float32)
            dw = factor * (d - along * w)
            tl.store(dw_ptr + row + source, cast(dw, dw_ptr.dtype.element_ty), mask=inside)


class Weights(NamedTuple):
    """What the products take, ``[F, KH, KW, CG]`` in memory."""

    operand: Tensor
    alpha: Tensor | None
    """A factor 1/‖w‖ that the operand lacks, [F] fp32."""
    inverse_norm: Tensor | None
    """1/‖w‖ of unit weights, [F] fp32."""


def dense(weight: Tensor) -> Tensor:
    """The weight itself where its memory order is OIHW or OHWI without gaps."""
    return weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous()


def _ohwi(call: Call, weight: Tensor) -> bool:
    """Whether the weight's memory order is [F, KH, KW, CG]."""
    return call.taps == 1 or call.group_channels == 1 or weight.is_contiguous(memory_format=torch.channels_last)


def prepare(call: Call, weight: Tensor) -> Weights:
    """A dense weight as the products take it."""
    ohwi = _ohwi(call, weight)
    if not call.unit:
        operand = weight if ohwi and weight.dtype == call.dtype else channels_last(weight.to(call.dtype))
        return Weights(operand, None, None)
    raw = call.raw_weights
    inverse = torch.empty(call.filters, dtype=torch.float32, device=weight.device)
    operand = weight
    if not (raw and ohwi):
        operand = torch.empty(weight.shape, dtype=call.dtype, device=weight.device, memory_format=torch.channels_last)
    depth = call.group_channels * call.taps
    launch(
        weight_norm_fwd_kernel, (call.filters,), weight, inverse, operand, depth, call.group_channels,
        TAPS=call.taps, OHWI=ohwi, WRITE=operand is not weight, RAW=raw, BN=min(1024, power_of_two(depth)),
    )  # fmt: skip
    return Weights(operand, inverse if raw else None, inverse)


def gradient(call: Call, partial: Tensor, weight: Tensor, weights: Weights) -> Tensor:
    """dw of the shares ``[splits, F, KH, KW, CG]`` of the operand's gradient."""
    dw = torch.empty_like(weight)
    depth = call.group_channels * call.taps
    launch(
        weight_norm_bwd_kernel, (call.filters,), partial, weight, weights.inverse_norm, dw, call.filters, depth,
        call.group_channels, partial.numel() // weight.numel(),
        TAPS=call.taps, OHWI=_ohwi(call, weight), UNIT=call.unit, RAW=weights.alpha is not None,
        BN=min(1024, power_of_two(depth)),
    )  # fmt: skip
    return dw
