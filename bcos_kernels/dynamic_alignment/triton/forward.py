"""y without the dynamic weights in memory: those of one value of the patch at a time, in registers."""

import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import matmul, pixel, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import precision, window
from .formula import norm_of, norm_term, scale


@triton.jit
def rows_of_h(h_rows, inside, start, rank, BK: tl.constexpr):
    """BK values of h [BM, BK] from ``start``, of the pixels whose rows begin at the pointers ``h_rows``."""
    r = start + tl.arange(0, BK)
    return tl.load(h_rows[:, None] + r[None, :], mask=inside[:, None] & (r < rank)[None, :], other=0.0)


@triton.jit
def dynamic_weights(
    h, h_rows, w_ptr, bias_ptr, row, inside, known, rank,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """w [BM, BN] of these rows of the weight and of the bias, which may be None.

    ``h`` [BM, BK] holds all values of h if they are ``WHOLE``; else they come from ``h_rows``.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    w_rows = w_ptr + row * rank
    w = tl.zeros((BM, BN), SUMS)
    for start in range(0, BK if WHOLE else rank, BK):
        r = start + tl.arange(0, BK)
        made = tl.load(w_rows[None, :] + r[:, None], mask=(r < rank)[:, None] & known[None, :], other=0.0)
        w = matmul(h if WHOLE else rows_of_h(h_rows, inside, start, rank, BK), made, w, PRECISION)
    if bias_ptr is not None:
        w += tl.load(bias_ptr + row, mask=known, other=0.0).to(SUMS)[None, :]
    return w


@triton.jit
def alignment_fwd_kernel(
    x_ptr, h_ptr, w_ptr, bias_ptr, y_ptr, norm_ptr, l_ptr,
    pixels, C, H, W, OH, OW, outputs, rank, tiles_o,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    NORM: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, O, OH, OW], and norms and products with the patch [O, N·OH·OW], of which l may be None.

    x [N, C, H, W]; h [N·OH·OW, R]; w [P·O, R]. ``WHOLE`` says that a tile holds all R values of h.
    """
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
    TAPS: tl.constexpr = KH * KW
    site = tl.program_id(0) // tiles_o * BM + tl.arange(0, BM)
    o = tl.program_id(0) % tiles_o * BN + tl.arange(0, BN)
    inside = site < pixels
    known = o < outputs
    image, oh, ow = pixel(site, OH, OW)
    top = oh * SH - PH
    left = ow * SW - PW
    h_rows = h_ptr + site.to(tl.int64) * rank
    h = rows_of_h(h_rows, inside, 0, rank, BK)
    l = tl.zeros((BM, BN), SUMS)  # noqa: E741
    total = tl.zeros((BM, BN), SUMS)
    # In fp64, what is known before the loop would take registers of which there are too few (Triton 3.6).
    for channel in tl.range(0, C, disable_licm=tl.float64 == SUMS):
        more_l = tl.zeros((BM, BN), SUMS)  # sums of sums round less
        more = tl.zeros((BM, BN), SUMS)
        for tap in range(TAPS):
            row = (channel * TAPS + tap) * outputs + o.to(tl.int64)
            w = dynamic_weights(h, h_rows, w_ptr, bias_ptr, row, inside, known, rank, WHOLE, PRECISION, BM, BN, BK)
            at_h = top + tap // KW
            at_w = left + tap % KW
            sees = inside & (at_h >= 0) & (at_h < H) & (at_w >= 0) & (at_w < W)
            at = ((image * C + channel) * H + at_h) * W + at_w
            u = tl.load(x_ptr + at, mask=sees, other=0.0).to(SUMS)
            more_l += u[:, None] * w
            more += norm_term(w, NORM)
        l += more_l  # noqa: E741
        total += more
    norm = norm_of(total, NORM)
    stored = inside[:, None] & known[None, :]
    kept = o.to(tl.int64)[None, :] * pixels + site[:, None]
    tl.store(norm_ptr + kept, norm, mask=stored)
    if l_ptr is not None:
        tl.store(l_ptr + kept, l, mask=stored)
    at = (image[:, None] * outputs + o[None, :]) * (OH * OW) + (oh * OW + ow)[:, None]
    tl.store(y_ptr + at, cast(scale(norm, NORM) * l, y_ptr.dtype.element_ty), mask=stored)


def forward(call: Call, x: Tensor, h: Tensor, weight: Tensor, bias, y: Tensor, norm: Tensor, l) -> None:  # noqa: E741
    """Writes y, norm and, unless it is None, l."""
    tile = tiles.forward(call)
    tiles_o = cdiv(call.outputs, tile.n)
    launch(
        alignment_fwd_kernel, (cdiv(call.pixels, tile.m) * tiles_o,), x, h, weight, bias, y, norm, l,
        call.pixels, *call.x_shape[1:], *call.size, call.outputs, call.rank, tiles_o,
        **window(call), NORM=call.spec.norm, WHOLE=call.rank <= tile.k, PRECISION=precision(call),
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
