"""The gradients of the convolution as implicit matrix products that include those of the norm and the scale."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.candidate import Tile
from ...gpu.functions import all_finite, matmul, pixel, safe_inverse
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tiles
from .arguments import plane, shares
from .formula import partials, restored, root_gradient
from .window import output_site, pooled_norm_gradient


@triton.jit
def form_u(
    grad_ptr, v_ptr, at, inv_n, inside,
    POWER: tl.constexpr, FROZEN: tl.constexpr, SAVED_L: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """∂L/∂l and each output's part of ∂L/∂n at the offsets ``at``, for b = 1 or 2; v is l with ``SAVED_L``, else y."""
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if POWER == 1:
        return grad, grad
    else:  # without "else" Triton would compile this for b = 1 too, where there is no v
        v = restored(tl.load(v_ptr + at, mask=inside, other=0.0).to(tl.float32), inv_n, POWER, SAVED_L)
        dl, dn = partials(v, inv_n, 1.0, 0.0, POWER, FROZEN, EXACT)
        return grad * dl, grad * dn


@triton.jit
def own_gradients(
    u_ptr, w_columns, image, h, w, inside, first, live, OH, OW, F, CG, FG,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """u ⋆ᵀ w of a tile of pixels × channels, over the filters of each channel's own group, which begin at ``first``."""
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(KH * KW * FG):
        tap = k // FG
        f = first + k % FG
        site, reads = output_site(image, h, w, tap // KW, tap % KW, OH, OW, SH, SW, PH, PW, DH, DW)
        at = site[:, None] * F + f[None, :]
        u = tl.load(u_ptr + at, mask=(reads & inside)[:, None] & live[None, :], other=0.0).to(tl.float32)
        b = tl.load(w_columns + f.to(tl.int64) * (KH * KW * CG) + tap * CG, mask=live, other=0.0).to(tl.float32)
        total += u * b[None, :]
    return total


@triton.jit
def conv2d_dgrad_kernel(
    u_ptr, t_ptr, grad_ptr, v_ptr, n_ptr, w_ptr, alpha_ptr, x_ptr, dx_ptr,
    pixels, H, W, OH, OW, CG, FG, tiles_n, eps_outside,
    G: tl.constexpr, PACK: tl.constexpr, ALIGN: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    POWER: tl.constexpr, ALPHA: tl.constexpr, FUSED: tl.constexpr, FROZEN: tl.constexpr, SAVED_L: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx = u ⋆ᵀ w + x · poolᵀ(t) with u = ∂L/∂z and t = ∂L/∂n · dn/dx ÷ x; ``FROZEN`` leaves out the second term.

    dx, x [N, H, W, G·CG]; w [G·FG, KH, KW, CG]. With ``FUSED`` (b = 1 or 2, no maximum) u and t are formed here, from
    grad and v [N, OH, OW, G·FG] and n [N, OH, OW, G]; otherwise u [N, OH, OW, G·FG] and t [N, OH, OW, G] are given.
    """
    TAPS: tl.constexpr = KH * KW
    WITH_T: tl.constexpr = not FROZEN and POWER != 1
    CG = CG // ALIGN * ALIGN  # tells the compiler that ALIGN divides a row
    FG = FG // ALIGN * ALIGN
    C = CG * G
    pid_n = tl.program_id(0) % tiles_n
    group0 = tl.program_id(1) * PACK
    row = (tl.program_id(0) // tiles_n) * BM + tl.arange(0, BM)
    inside = row < pixels
    image, h, w = pixel(row, H, W)
    channel = pid_n * BN + tl.arange(0, BN)  # within the pack
    live = channel < PACK * CG
    w_columns = w_ptr + (channel % CG if PACK > 1 else channel)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    pooled = tl.zeros((BM,), tl.float32)
    blocks = tl.cdiv(PACK * FG, BK)
    for step in range(TAPS * blocks):
        tap = step // blocks
        f = (step - tap * blocks) * BK + rk  # within the pack
        known = f < PACK * FG
        site, reads = output_site(image, h, w, tap // KW, tap % KW, OH, OW, SH, SW, PH, PW, DH, DW)
        reads = reads & inside
        a_mask = reads[:, None] & known[None, :]
        at = site[:, None] * (G * FG) + (group0 * FG + f)[None, :]
        if FUSED:
            inv_n = tl.zeros((BM, 1), tl.float32)
            if POWER != 1:
                n = tl.load(n_ptr + site * G + group0, mask=reads, other=0.0)
                inv_n = safe_inverse(n)[:, None]
            u, dn = form_u(grad_ptr, v_ptr, at, inv_n, a_mask, POWER, FROZEN, SAVED_L, EXACT)
            if WITH_T:
                pooled += tl.sum(dn, axis=1) * root_gradient(n, eps_outside)
            if ALPHA:
                u *= tl.load(alpha_ptr + group0 * FG + f, mask=known, other=0.0)[None, :]
            a = cast(u, w_ptr.dtype.element_ty)
        else:
            a = tl.load(u_ptr + at, mask=a_mask, other=0.0)
        b_mask = known[:, None] & live[None, :]
        if PACK > 1:
            b_mask = b_mask & ((f // FG)[:, None] == (channel // CG)[None, :])
        b_rows = (group0 * FG + f).to(tl.int64) * (TAPS * CG) + tap * CG
        b = tl.load(w_columns[None, :] + b_rows[:, None], mask=b_mask, other=0.0)  # [BK, BN]
        acc = matmul(a, b, acc, PRECISION)

    if PACK > 1 and not all_finite(acc):
        first = (group0 + channel // CG) * FG
        acc = own_gradients(
            u_ptr, w_columns, image, h, w, inside, first, live, OH, OW, G * FG, CG, FG,
            KH, KW, SH, SW, PH, PW, DH, DW, BM, BN,
        )  # fmt: skip
    offsets = row.to(tl.int64)[:, None] * C + (group0 * CG + channel)[None, :]
    stored = inside[:, None] & live[None, :]
    if WITH_T:
        x = tl.load(x_ptr + offsets, mask=stored, other=0.0).to(tl.float32)
        if PACK > 1:
            acc += x * pooled_norm_gradient(
                t_ptr, image[:, None], h[:, None], w[:, None], (group0 + channel // CG)[None, :], stored, OH, OW,
                G, KH, KW, SH, SW, PH, PW, DH, DW,
            )  # fmt: skip
        else:
            if not FUSED:
                pooled = pooled_norm_gradient(
                    t_ptr, image, h, w, group0, inside, OH, OW, G, KH, KW, SH, SW, PH, PW, DH, DW
                )  # fmt: skip
            acc += x * pooled[:, None]
    tl.store(dx_ptr + offsets, cast(acc, dx_ptr.dtype.element_ty), mask=stored)


@triton.jit
def conv2d_wgrad_kernel(
    u_ptr, grad_ptr, v_ptr, n_ptr, x_ptr, alpha_ptr, dw_ptr, dbias_ptr,
    pixels, H, W, OH, OW, CG, FG, tiles_n, splits,
    G: tl.constexpr, PACK: tl.constexpr, ALIGN: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    POWER: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr, FUSED: tl.constexpr, FROZEN: tl.constexpr,
    SAVED_L: tl.constexpr, FLAT: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dw[split] = Σ_pixels uᵀ x over every ``splits``-th block of pixels.

    The partial sums are added afterwards in a fixed order, so that the result is the same in every run.
    dw [splits, G·FG, KH, KW, CG] fp32; dbias [splits, G·FG] fp32, the column sums of u. u is as in the dgrad kernel.
    """
    TAPS: tl.constexpr = KH * KW
    CG = CG // ALIGN * ALIGN  # tells the compiler that ALIGN divides a row
    FG = FG // ALIGN * ALIGN
    C = CG * G
    F = FG * G
    pid_n = tl.program_id(0) % tiles_n
    pid_m = tl.program_id(0) // tiles_n
    split = tl.program_id(2)
    if FLAT:
        group0 = tl.program_id(1) * PACK
        channel = pid_n * BN + tl.arange(0, BN)
        tap = channel // CG
        channel = channel - tap * CG
        live = tap < TAPS
        down = (tap // KW * DH)[None, :]
        along = (tap % KW * DW)[None, :]
        leads = pid_n == 0
    else:
        group0 = tl.program_id(1) // TAPS * PACK
        tap = tl.program_id(1) % TAPS
        channel = pid_n * BN + tl.arange(0, BN)  # within the pack
        live = channel < PACK * CG
        down = tap // KW * DH
        along = tap % KW * DW
        leads = (pid_n == 0) & (tap == 0)
    f = pid_m * BM + tl.arange(0, BM)  # within the pack
    known = f < PACK * FG
    acc = tl.zeros((BM, BN), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for start in range(split * BK, pixels, splits * BK):
        index = start + tl.arange(0, BK)
        inside = index < pixels
        image, oh, ow = pixel(index, OH, OW)
        site = index.to(tl.int64)
        u_mask = inside[:, None] & known[None, :]
        at = site[:, None] * F + (group0 * FG + f)[None, :]
        if FUSED:
            inv_n = tl.zeros((BK, 1), tl.float32)
            if POWER != 1:
                inv_n = safe_inverse(tl.load(n_ptr + site * G + group0, mask=inside, other=0.0))[:, None]
            u, _ = form_u(grad_ptr, v_ptr, at, inv_n, u_mask, POWER, FROZEN, SAVED_L, EXACT)
            if ALPHA:
                u *= tl.load(alpha_ptr + group0 * FG + f, mask=known, other=0.0)[None, :]
            if BIAS:
                total += tl.sum(u, axis=0)
            u = cast(u, x_ptr.dtype.element_ty)
        else:
            u = tl.load(u_ptr + at, mask=u_mask, other=0.0)  # [BK, BM]
        h = oh[:, None] * SH - PH + down
        w = ow[:, None] * SW - PW + along
        x_mask = (inside[:, None] & live[None, :]) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        x_offsets = ((image[:, None] * H + h) * W + w) * C + (group0 * CG + channel)[None, :]
        x = tl.load(x_ptr + x_offsets, mask=x_mask, other=0.0)  # [BK, BN]
        acc = matmul(tl.trans(u), x, acc, PRECISION)

    filters = group0 * FG + f
    stored = known[:, None] & live[None, :]
    if PACK > 1:
        stored = stored & ((f // FG)[:, None] == (channel // CG)[None, :])
    rows = (split * F + filters).to(tl.int64) * (TAPS * CG)
    tl.store(dw_ptr + rows[:, None] + (tap * CG + channel % CG)[None, :], acc, mask=stored)
    if BIAS:
        tl.store(dbias_ptr + split * F + filters, total, mask=known & leads)


class Source(NamedTuple):
    """u and t where a kernel has formed them, and the tensors from which the products form them otherwise."""

    u: Tensor | None
    t: Tensor | None
    grad: Tensor
    v: Tensor | None
    n: Tensor
    frozen: bool


def dgrad(call: Call, source: Source, weights, x: Tensor, tile: Tile) -> Tensor:
    """dx ``[N, C, H, W]``."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    tiles_n = cdiv(call.pack * call.group_channels, tile.n)
    *tensors, frozen = source
    launch(
        conv2d_dgrad_kernel, (cdiv(call.in_pixels, tile.m) * tiles_n, call.groups // call.pack),
        *tensors, weights.operand, weights.alpha, x, dx,
        call.in_pixels, *plane(call).sizes, call.group_channels, call.group_filters, tiles_n, call.norm_eps[1],
        G=call.groups, PACK=call.pack, ALIGN=call.align, **plane(call).window, POWER=call.power,
        ALPHA=weights.alpha is not None,
        FUSED=source.u is None, FROZEN=frozen, SAVED_L=call.saves_linear, EXACT=call.exact, PRECISION=call.precision,
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return dx


def wgrad(call: Call, source: Source, weights, x: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Partial sums ``[splits, F, KH, KW, CG]`` of the gradient of the products' weights, and dbias."""
    u, _, *tensors, frozen = source
    fused = u is None
    tile = tiles.wgrad_tile(call, not fused)
    columns = call.taps * call.group_channels if call.flat else call.pack * call.group_channels
    tiles_n = cdiv(columns, tile.n)
    grid = (
        cdiv(call.pack * call.group_filters, tile.m) * tiles_n,
        (1 if call.flat else call.taps) * (call.groups // call.pack),
    )
    splits = tiles.splits(call.pixels, grid[0] * grid[1], tile.k)
    partial, total = shares(call, splits, x.device, with_bias and fused)
    launch(
        conv2d_wgrad_kernel, (*grid, splits), u, *tensors, x, weights.alpha, partial, total,
        call.pixels, *plane(call).sizes, call.group_channels, call.group_filters, tiles_n, splits,
        G=call.groups, PACK=call.pack, ALIGN=call.align, **plane(call).window, POWER=call.power,
        ALPHA=weights.alpha is not None,
        BIAS=with_bias and fused, FUSED=fused, FROZEN=frozen, SAVED_L=call.saves_linear,
        FLAT=call.flat, EXACT=call.exact, PRECISION=call.precision,
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    if not with_bias:
        return partial, None
    if total is not None:
        return partial, total.sum(0)
    assert u is not None
    # A given u is not summed in the kernel: on sm_90 a tile that both a product and a sum read is refilled too early.
    return partial, u.sum((0, 2, 3), dtype=torch.float32)
