"""The gradients of h, the weight and the bias with the norm ``"l1"``, whose slope multiplies the signs of w.

The terms of dw = of_u · u + of_w · sign(w) have no Gram matrices in the place of w. So a tile of w is formed once more,
and dw is multiplied while it is in registers: with the weight for dh, and with h for dweight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import matmul, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import precision, wide_precision
from .forward import dynamic_weights, rows_of_h
from .gradients import added

__all__ = ["dh", "dweight"]


@triton.jit
def gradients_of_weights(
    h, h_rows, u_rows, w_ptr, bias_ptr, of_u, of_w, p, o, inside, patch, stride, outputs, rank,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dw [BM, BP] of the values p of the patch and of output o, for pixels with these of_u and of_w."""
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    row = p.to(tl.int64) * outputs + o
    w = dynamic_weights(h, h_rows, w_ptr, bias_ptr, row, inside, p < patch, rank, WHOLE, PRECISION, BM, BP, BK)
    u = tl.load(u_rows[:, None] + p[None, :], mask=inside[:, None] & (p < stride)[None, :], other=0.0).to(SUMS)
    sign = tl.where(w > 0, 1.0, tl.where(w < 0, -1.0, 0.0))
    return of_u[:, None] * u + of_w[:, None] * sign


@triton.jit
def alignment_dh_signs_kernel(
    of_u_ptr, of_w_ptr, u_ptr, h_ptr, w_ptr, bias_ptr, dh_ptr, pixels, patch, stride, outputs, rank, tiles_r, splits,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dh [splits, N·OH·OW, R], whose parts are sums over every ``splits``-th output.

    ``HALF`` multiplies in the weight's dtype, else in that of sums with the precision ``WIDE``: fp16 may not hold dw.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    site = tl.program_id(0) // tiles_r * BM + tl.arange(0, BM)
    r = tl.program_id(0) % tiles_r * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    inside = site < pixels
    u_rows = u_ptr + site.to(tl.int64) * stride
    h_rows = h_ptr + site.to(tl.int64) * rank
    h = rows_of_h(h_rows, inside, 0, rank, BK)
    wide = tl.zeros((BM,), tl.int64) + pixels  # makes products of 64 bits
    dh = tl.zeros((BM, BN), SUMS)
    for o in range(split, outputs, splits):
        at = o * wide + site
        of_u = tl.load(of_u_ptr + at, mask=inside, other=0.0)
        of_w = tl.load(of_w_ptr + at, mask=inside, other=0.0)
        of_output = tl.zeros((BM, BN), SUMS)  # sums of sums round less
        for start in range(0, patch, BP):
            p = start + tl.arange(0, BP)
            dw = gradients_of_weights(
                h, h_rows, u_rows, w_ptr, bias_ptr, of_u, of_w, p, o, inside, patch, stride, outputs, rank,
                WHOLE, PRECISION, BM, BP, BK,
            )  # fmt: skip
            row = p.to(tl.int64) * outputs + o
            live = (p < patch)[:, None] & (r < rank)[None, :]
            made = tl.load(w_ptr + row[:, None] * rank + r[None, :], mask=live, other=0.0)
            if HALF:
                dw = cast(dw, w_ptr.dtype.element_ty)
            else:
                made = made.to(SUMS)
            of_output = matmul(dw, made, of_output, WIDE)
        dh += of_output
    at = (split.to(tl.int64) * pixels + site)[:, None] * rank + r[None, :]
    tl.store(dh_ptr + at, dh, mask=inside[:, None] & (r < rank)[None, :])


@triton.jit
def alignment_dweight_signs_kernel(
    of_u_ptr, of_w_ptr, u_ptr, h_ptr, w_ptr, bias_ptr, dweight_ptr, dbias_ptr,
    pixels, patch, stride, outputs, rank, tiles_p, tiles_r, splits,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dweight [splits, P, O, R] and dbias [splits, P, O] or None, whose parts have every ``splits``-th BP pixels.

    ``HALF`` and ``WIDE`` are as in :func:`alignment_dh_signs_kernel`.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    tile = tl.program_id(0) // tiles_r
    p = tile % tiles_p * BM + tl.arange(0, BM)
    o = (tile // tiles_p).to(tl.int64)
    tile_r = tl.program_id(0) % tiles_r
    r = tile_r * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    dweight = tl.zeros((BM, BN), SUMS)
    dbias = tl.zeros((BM,), SUMS)
    for start in range(split * BP, pixels, splits * BP):
        site = start + tl.arange(0, BP)
        inside = site < pixels
        u_rows = u_ptr + site.to(tl.int64) * stride
        h_rows = h_ptr + site.to(tl.int64) * rank
        of_u = tl.load(of_u_ptr + o * pixels + site, mask=inside, other=0.0)
        of_w = tl.load(of_w_ptr + o * pixels + site, mask=inside, other=0.0)
        h = rows_of_h(h_rows, inside, 0, rank, BK)
        dw = gradients_of_weights(
            h, h_rows, u_rows, w_ptr, bias_ptr, of_u, of_w, p, o, inside, patch, stride, outputs, rank,
            WHOLE, PRECISION, BP, BM, BK,
        )  # fmt: skip
        dbias += tl.sum(dw, 0)
        values = tl.load(h_rows[:, None] + r[None, :], mask=inside[:, None] & (r < rank)[None, :], other=0.0)
        if HALF:
            dw = cast(dw, h_ptr.dtype.element_ty)
        else:
            values = values.to(SUMS)
        dweight = matmul(tl.trans(dw), values, dweight, WIDE)
    row = (split.to(tl.int64) * patch + p) * outputs + o
    tl.store(dweight_ptr + row[:, None] * rank + r[None, :], dweight, mask=(p < patch)[:, None] & (r < rank)[None, :])
    if dbias_ptr is not None:
        tl.store(dbias_ptr + row, dbias, mask=(p < patch) & (tile_r == 0))


def _options(call: Call, tile) -> dict:
    return {
        "WHOLE": call.rank <= tile.k, "PRECISION": precision(call), "HALF": call.dtype == torch.bfloat16,
        "WIDE": wide_precision(call), "BM": tile.m, "BN": tile.n, "BP": tiles.signs(call), "BK": tile.k,
        "warps": tile.warps, "stages": tile.stages,
    }  # fmt: skip


def dh(call: Call, of_u: Tensor, of_w: Tensor, u: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The gradient of h, ``[N·OH·OW, R]``."""
    tile = tiles.dh_signs(call)
    tiles_r = cdiv(call.rank, tile.n)
    programs = cdiv(call.pixels, tile.m) * tiles_r
    splits = tiles.splits(programs, call.outputs)
    parts = torch.empty((splits, *h.shape), dtype=call.sums, device=h.device)
    launch(
        alignment_dh_signs_kernel, (programs, splits), of_u, of_w, u, h, weight, bias, parts,
        call.pixels, call.patch, u.shape[1], call.outputs, call.rank, tiles_r, splits, **_options(call, tile),
    )  # fmt: skip
    return added(parts)


def dweight(
    call: Call, of_u: Tensor, of_w: Tensor, u: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the weight ``[P·O, R]`` and, ``with_bias``, of the bias ``[P·O]``."""
    tile = tiles.dweight_signs(call)
    tiles_p, tiles_r = cdiv(call.patch, tile.m), cdiv(call.rank, tile.n)
    programs = call.outputs * tiles_p * tiles_r
    splits = tiles.splits(programs, cdiv(call.pixels, 4 * tiles.signs(call)))
    parts = torch.empty((splits, *weight.shape), dtype=call.sums, device=h.device)
    of_bias = torch.empty((splits, len(weight)), dtype=call.sums, device=h.device) if with_bias else None
    launch(
        alignment_dweight_signs_kernel, (programs, splits), of_u, of_w, u, h, weight, bias, parts, of_bias,
        call.pixels, call.patch, u.shape[1], call.outputs, call.rank, tiles_p, tiles_r, splits, **_options(call, tile),
    )  # fmt: skip
    return added(parts), None if of_bias is None else added(of_bias)
