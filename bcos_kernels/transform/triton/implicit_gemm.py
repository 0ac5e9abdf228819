"""The convolution as an implicit matrix product that also computes the patch norm and the scale.

Tensors are NHWC, weights OHWI; a linear layer is the 1×1 convolution of images of one pixel. ``PACK`` neighbouring
groups, called a pack, share a tile, so that narrow groups fill a tensor core; weights between two of them are 0. A tile
with a sum that is not finite is formed again, each group on its own: 0 times an infinite value of a neighbour is NaN.
"""

import triton
import triton.language as tl

from ...core.candidate import Tile
from ...gpu.functions import all_finite, matmul, pixel, safe_inverse
from ...gpu.launch import launch
from ...gpu.rounding import INTERPRETED, cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import patch_norm, tiles
from .arguments import formula, plane
from .formula import exponent, first_max, root_norm, transform


@triton.jit
def in_registers(a, REGISTERS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """a [BM, BK] unchanged, but moved to registers, so that an asynchronous product does not read a refilled buffer."""
    if REGISTERS and not INTERPRETED:
        a = tl.reshape(tl.trans(tl.reshape(tl.trans(a), (BK, BM // 8, 8)), (1, 2, 0)), (BM, BK))
    return a


@triton.jit
def own_products(
    x_ptr, w_columns, corner, top, left, inside, first, live, H, W, C, CG,
    TAPS: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """x ⋆ w of a tile of pixels × filters, over the channels of each filter's own group, which begin at ``first``."""
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(TAPS * CG):
        tap = k // CG
        h = top + tap // KW * DH
        w = left + tap % KW * DW
        sees = (inside & (h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None] & live[None, :]
        at = (corner + (tap // KW * DH * W + tap % KW * DW))[:, None] * C + (first + k % CG)[None, :]
        a = tl.load(x_ptr + at, mask=sees, other=0.0).to(tl.float32)
        total += a * tl.load(w_columns + k, mask=live, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def conv2d_fwd_kernel(
    x_ptr, w_ptr, alpha_ptr, bias_ptr, squares_ptr, b_ptr, y_ptr, n_ptr, l_ptr, winner_ptr,
    pixels, H, W, OH, OW, CG, OG, tiles_n, b_minus_1, cos_eps, eps_inside, eps_outside,
    G: tl.constexpr, PACK: tl.constexpr, ALIGN: tl.constexpr, MAX_OUT: tl.constexpr, LOG_COLUMNS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr,
    NORM: tl.constexpr, SAVE_N: tl.constexpr, SAVE_L: tl.constexpr, FLAT: tl.constexpr, REGISTERS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = transform(max(alpha · x ⋆ w + bias), n), and those of n, l and winner that the backward needs.

    x [N, H, W, G·CG]; w [G·OG·MAX_OUT, KH, KW, CG]; y, l, winner [N, OH, OW, G·OG]; n [N, OH, OW, G] fp32.
    With ``NORM`` "tile" the norm sums the squares of x's tiles, with "window" it sums ``squares`` [N, H, W, G] over
    the window. ``FLAT`` walks taps and channels as one axis, for few channels. Source: B-cos Networks, eq. 3.
    """
    BO: tl.constexpr = BN >> LOG_COLUMNS
    TAPS: tl.constexpr = KH * KW
    CG = CG // ALIGN * ALIGN  # tells the compiler that ALIGN divides a row
    OG = OG // ALIGN * ALIGN
    C = CG * G
    pid_n = tl.program_id(0) % tiles_n
    group0 = tl.program_id(1) * PACK
    row = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    inside = row < pixels
    image, oh, ow = pixel(row, OH, OW)
    top = oh * SH - PH
    left = ow * SW - PW
    corner = (image * H + top) * W + left  # [BM], may lie outside of the image
    column = tl.arange(0, BN)
    which = column & ((1 << LOG_COLUMNS) - 1)
    output = pid_n * BO + (column >> LOG_COLUMNS)  # within the pack
    live = (output < PACK * OG) & (which < MAX_OUT)
    filters = (group0 * OG + output) * MAX_OUT + which
    rk = tl.arange(0, BK)
    x_rows = x_ptr + corner * C + group0 * CG
    w_columns = w_ptr + filters.to(tl.int64) * (TAPS * CG)
    acc = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    blocks = tl.cdiv(TAPS * CG if FLAT else PACK * CG, BK)
    for step in range(blocks if FLAT else TAPS * blocks):
        if FLAT:
            k = step * BK + rk
            tap = k // CG
            channel = k - tap * CG
            h = top[:, None] + (tap // KW * DH)[None, :]
            w = left[:, None] + (tap % KW * DW)[None, :]
            known = k < TAPS * CG
            a_offset = (tap // KW * DH * W + tap % KW * DW) * C + channel
            b_offset = k
            b_mask = known[:, None] & live[None, :]
            a_mask = (inside[:, None] & known[None, :]) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        else:
            tap = step // blocks
            channel = (step - tap * blocks) * BK + rk  # within the pack
            known = channel < PACK * CG
            a_offset = (tap // KW * DH * W + tap % KW * DW) * C + channel
            b_offset = tap * CG + channel % CG if PACK > 1 else tap * CG + channel
            b_mask = known[:, None] & live[None, :]
            if PACK > 1:
                b_mask = b_mask & ((channel // CG)[:, None] == (output // OG)[None, :])
            if TAPS == 1 and PH == 0 and PW == 0:
                a_mask = inside[:, None] & known[None, :]
            else:
                h = top + tap // KW * DH
                w = left + tap % KW * DW
                a_mask = (inside & (h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None] & known[None, :]
        a = tl.load(x_rows[:, None] + a_offset[None, :], mask=a_mask, other=0.0)  # [BM, BK]
        b = tl.load(w_columns[None, :] + b_offset[:, None], mask=b_mask, other=0.0)  # [BK, BN]
        if NORM == "tile":
            a = in_registers(a, REGISTERS, BM, BK)
            wide = a.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
        acc = matmul(a, b, acc, PRECISION)

    if PACK > 1 and not all_finite(acc):
        first = (group0 + output // OG) * CG
        acc = own_products(
            x_ptr, w_columns, corner, top, left, inside, first, live, H, W, C, CG, TAPS, KW, DH, DW, BM, BN
        )  # fmt: skip
    if ALPHA:
        acc *= tl.load(alpha_ptr + filters, mask=live, other=0.0)[None, :]
    if BIAS:
        acc += tl.load(bias_ptr + filters, mask=live, other=0.0).to(tl.float32)[None, :]
    output = pid_n * BO + tl.arange(0, BO)
    live = output < PACK * OG
    stored = inside[:, None] & live[None, :]
    site = row.to(tl.int64)
    offsets = site[:, None] * (G * OG) + (group0 * OG + output)[None, :]
    if MAX_OUT > 1:
        acc, winner = first_max(tl.where((which < MAX_OUT)[None, :], acc, -float("inf")), which, LOG_COLUMNS)
        tl.store(winner_ptr + offsets, winner.to(tl.uint8), mask=stored)
    inv_n = acc
    if POWER != 1:
        if PACK == 1:
            if NORM == "window":
                for tap in range(TAPS):
                    h = top + tap // KW * DH
                    w = left + tap % KW * DW
                    sees = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
                    at = (corner + (tap // KW * DH * W + tap % KW * DW)) * G + group0
                    squares += tl.load(squares_ptr + at, mask=sees, other=0.0)
            n = root_norm(squares, eps_inside, eps_outside)
            if SAVE_N and pid_n == 0:
                tl.store(n_ptr + site * G + group0, n, mask=inside)
            inv_n = safe_inverse(n)[:, None]
        else:
            group = group0 + output // OG
            spread = tl.zeros((BM, BO), tl.float32)
            for tap in range(TAPS):
                h = top + tap // KW * DH
                w = left + tap % KW * DW
                sees = stored & (inside & (h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None]
                at = (corner + (tap // KW * DH * W + tap % KW * DW))[:, None] * G + group[None, :]
                spread += tl.load(squares_ptr + at, mask=sees, other=0.0)
            n = root_norm(spread, eps_inside, eps_outside)
            if SAVE_N:
                first = stored & (output % OG == 0)[None, :]
                tl.store(n_ptr + site[:, None] * G + group[None, :], n, mask=first)
            inv_n = safe_inverse(n)
    b_minus_1, cos_eps = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
    y = transform(acc, inv_n, b_minus_1, cos_eps, POWER, EXACT)
    tl.store(y_ptr + offsets, cast(y, y_ptr.dtype.element_ty), mask=stored)
    if SAVE_L:
        tl.store(l_ptr + offsets, cast(acc, l_ptr.dtype.element_ty), mask=stored)


def forward(call: Call, x, weights, bias, b, out, tile: Tile) -> None:
    """Writes y, n, l and winner into ``out``."""
    norm = "none" if call.power == 1 else "tile" if call.pack == 1 and (call.taps == 1 or call.flat) else "window"
    columns = tiles.columns_of_output(call)
    tiles_n = cdiv(call.pack * call.group_outputs, tile.n // columns)
    launch(
        conv2d_fwd_kernel, (cdiv(call.pixels, tile.m) * tiles_n, call.groups // call.pack),
        x, weights.operand, weights.alpha, bias, patch_norm.squares(call, x) if norm == "window" else None, b,
        out.y, out.n, out.l, out.winner,
        call.pixels, *plane(call).sizes, call.group_channels, call.group_outputs, tiles_n,
        call.b_minus_1, call.cos_eps, *call.norm_eps,
        G=call.groups, PACK=call.pack, ALIGN=call.align, MAX_OUT=call.max_out, LOG_COLUMNS=columns.bit_length() - 1,
        **plane(call).window, **formula(call), ALPHA=weights.alpha is not None, BIAS=bias is not None, NORM=norm,
        SAVE_N=call.saves_norm,
        SAVE_L=call.saves_linear, FLAT=call.flat, REGISTERS=call.arch == "sm_90", PRECISION=call.precision,
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
