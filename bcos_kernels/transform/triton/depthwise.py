"""Depthwise convolution: the product and the patch norm in one loop over the window.

Each channel has one filter; x is NHWC, the weight [C, KH, KW]. A row of a program's tile is a strip of ``V``
neighbouring pixels, held as a tuple of tiles, so that a value is read once for all pixels of the strip whose windows
contain it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import pixel, safe_inverse, tile_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv, power_of_two
from ..call import Call
from . import tiles
from .arguments import formula, image, plane, shares
from .formula import exponent, partials, restored, root_gradient, root_norm, transform


@triton.jit
def zeros(BM: tl.constexpr, BN: tl.constexpr, count: tl.constexpr):
    """A tuple of ``count`` tiles of zeros."""
    tiles = ()
    for _ in tl.static_range(count):
        tiles = tiles + (tl.zeros((BM, BN), tl.float32),)
    return tiles


@triton.jit
def at_position(x_ptr, start, left, p, within, channel, W, C):
    """x [N, H, W, C] at position p of strips that begin at offset ``start`` and column ``left``: [BM, BN] in fp32."""
    mask = within & ((left + p >= 0) & (left + p < W))[:, None]
    return tl.load(x_ptr + (start + p)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def tap_row(w_ptr, channel, live, i, KH: tl.constexpr, KW: tl.constexpr):
    """Row i of the taps of w [C, KH, KW]: a tuple of KW vectors [1, BN]."""
    row = ()
    for j in tl.static_range(KW):
        w = tl.load(w_ptr + channel * (KH * KW) + i * KW + j, mask=live, other=0.0).to(tl.float32)
        row = row + (w[None, :],)
    return row


@triton.constexpr_function
def tap_of(p, v, KW, S, D):
    """The tap through which pixel v of a strip sees position p of the row; -1 where it does not see it."""
    distance = p - v * S
    return distance // D if 0 <= distance <= (KW - 1) * D and distance % D == 0 else -1


@triton.jit
def add_products(sums, x, row, p: tl.constexpr, V: tl.constexpr, KW: tl.constexpr, S: tl.constexpr, D: tl.constexpr,
                 FLIPPED: tl.constexpr):  # fmt: skip
    """sums[v] += x · tap, for every pixel of the strip that sees position p."""
    new = ()
    for v in tl.static_range(V):
        if tap_of(p, v, KW, S, D) < 0:
            new = new + (sums[v],)
        elif FLIPPED:
            new = new + (sums[v] + x * row[KW - 1 - tap_of(p, v, KW, S, D)],)
        else:
            new = new + (sums[v] + x * row[tap_of(p, v, KW, S, D)],)
    return new


@triton.jit
def add_at(columns, x, p: tl.constexpr, P: tl.constexpr):
    """Adds x to the p-th of the P tiles in ``columns``, or to none for p = -1."""
    new = ()
    for q in tl.static_range(P):
        if q == p:
            new = new + (columns[q] + x,)
        else:
            new = new + (columns[q],)
    return new


@triton.jit
def window_sum(columns, v: tl.constexpr, KW: tl.constexpr, S: tl.constexpr, D: tl.constexpr):
    """The sum over the columns that pixel v of a strip sees."""
    total = columns[v * S]
    for j in tl.static_range(1, KW):
        total += columns[v * S + j * D]
    return total


@triton.jit
def depthwise_fwd_kernel(
    x_ptr, w_ptr, alpha_ptr, bias_ptr, b_ptr, y_ptr, l_ptr,
    strips, H, W, OH, OW, C, b_minus_1, cos_eps, eps_inside, eps_outside,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr,
    SAVE_L: tl.constexpr, EXACT: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y = transform(alpha · x ⋆ w + bias, n): x [N, H, W, C], w [C, KH, KW], y and l [N, OH, OW, C].

    Source: B-cos Networks, eq. 3.
    """
    P: tl.constexpr = (V - 1) * SW + (KW - 1) * DW + 1  # positions of a row that a strip sees
    strip, channel = tile_of(strips, BM, BN)
    live = channel < C
    inside = (strip < strips)[:, None] & live[None, :]
    image, oh, block = pixel(strip, OH, tl.cdiv(OW, V))
    left = block * (V * SW) - PW
    z = zeros(BM, BN, V)
    squares = zeros(BM, BN, P)
    for i in range(KH):
        row = tap_row(w_ptr, channel, live, i, KH, KW)
        h = oh * SH - PH + i * DH
        start = (image * H + h) * W + left
        within = inside & ((h >= 0) & (h < H))[:, None]
        for p in tl.static_range(P):
            x = at_position(x_ptr, start, left, p, within, channel, W, C)
            z = add_products(z, x, row, p, V, KW, SW, DW, False)
            squares = add_at(squares, x * x, p, P)
    b_minus_1, cos_eps = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
    for v in tl.static_range(V):
        l = z[v]  # noqa: E741
        if ALPHA:
            l *= tl.load(alpha_ptr + channel, mask=live, other=0.0)[None, :]  # noqa: E741
        if BIAS:
            l += tl.load(bias_ptr + channel, mask=live, other=0.0).to(tl.float32)[None, :]  # noqa: E741
        inv_n = safe_inverse(root_norm(window_sum(squares, v, KW, SW, DW), eps_inside, eps_outside), EXACT)
        y = transform(l, inv_n, b_minus_1, cos_eps, POWER, EXACT)
        at = ((image * OH + oh) * OW + block * V + v)[:, None] * C + channel[None, :]
        mask = inside & (block * V + v < OW)[:, None]
        tl.store(y_ptr + at, cast(y, y_ptr.dtype.element_ty), mask=mask)
        if SAVE_L:
            tl.store(l_ptr + at, cast(l, l_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_bwd_kernel(
    grad_ptr, v_ptr, x_ptr, alpha_ptr, b_ptr, u_ptr, t_ptr,
    strips, H, W, OH, OW, C, b_minus_1, cos_eps, eps_inside, eps_outside,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr,
    FROZEN: tl.constexpr, SAVED_L: tl.constexpr, EXACT: tl.constexpr,
    V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """u = ∂L/∂z and t = ∂L/∂n · dn/dx ÷ x, both [N, OH, OW, C]; v is l with ``SAVED_L``, else y.

    n is formed again because a saved one would be as large as x.
    """
    P: tl.constexpr = (V - 1) * SW + (KW - 1) * DW + 1  # positions of a row that a strip sees
    strip, channel = tile_of(strips, BM, BN)
    live = channel < C
    inside = (strip < strips)[:, None] & live[None, :]
    image, oh, block = pixel(strip, OH, tl.cdiv(OW, V))
    left = block * (V * SW) - PW
    squares = zeros(BM, BN, P)
    for i in range(KH if POWER != 1 else 0):
        h = oh * SH - PH + i * DH
        start = (image * H + h) * W + left
        within = inside & ((h >= 0) & (h < H))[:, None]
        for p in tl.static_range(P):
            x = at_position(x_ptr, start, left, p, within, channel, W, C)
            squares = add_at(squares, x * x, p, P)
    b_minus_1, cos_eps = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
    for v in tl.static_range(V):
        n = root_norm(window_sum(squares, v, KW, SW, DW), eps_inside, eps_outside)
        at = ((image * OH + oh) * OW + block * V + v)[:, None] * C + channel[None, :]
        mask = inside & (block * V + v < OW)[:, None]
        grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
        inv_n = safe_inverse(n, EXACT)
        value = tl.zeros((BM, BN), tl.float32)
        if POWER != 1:
            value = restored(tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32), inv_n, POWER, SAVED_L)
        dl, dn = partials(value, inv_n, b_minus_1, cos_eps, POWER, FROZEN, EXACT)
        u = grad * dl
        if ALPHA:
            u *= tl.load(alpha_ptr + channel, mask=live, other=0.0)[None, :]
        tl.store(u_ptr + at, cast(u, u_ptr.dtype.element_ty), mask=mask)
        if POWER != 1 and not FROZEN:
            tl.store(t_ptr + at, grad * dn * root_gradient(n, eps_outside, EXACT), mask=mask)


@triton.jit
def depthwise_dgrad_kernel(
    u_ptr, t_ptr, w_ptr, x_ptr, dx_ptr, strips, H, W, OH, OW, C,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    WITH_T: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx = u ⋆ᵀ w + x · poolᵀ(t), both sums in one loop over the taps; dx, x [N, H, W, C], u, t [N, OH, OW, C]."""
    P: tl.constexpr = V + (KW - 1) * DW  # positions of a row that a strip sees
    strip, channel = tile_of(strips, BM, BN)
    live = channel < C
    inside = (strip < strips)[:, None] & live[None, :]
    image, h, block = pixel(strip, H, tl.cdiv(W, V))
    left = block * V + PW - (KW - 1) * DW
    dx = zeros(BM, BN, V)
    pooled = zeros(BM, BN, P)
    for i in range(KH):
        row = tap_row(w_ptr, channel, live, i, KH, KW)
        top = h + PH - i * DH
        oh = top // SH
        start = (image * OH + oh) * OW
        within = inside & ((top >= 0) & (top == oh * SH) & (oh < OH))[:, None]
        for p in tl.static_range(P):
            ow = (left + p) // SW
            reads = (left + p >= 0) & (left + p == ow * SW) & (ow < OW)
            mask = within & reads[:, None]
            at = (start + ow)[:, None] * C + channel[None, :]
            u = tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32)
            dx = add_products(dx, u, row, p, V, KW, 1, DW, True)
            if WITH_T:
                pooled = add_at(pooled, tl.load(t_ptr + at, mask=mask, other=0.0), p, P)
    for v in tl.static_range(V):
        at = ((image * H + h) * W + block * V + v)[:, None] * C + channel[None, :]
        mask = inside & (block * V + v < W)[:, None]
        value = dx[v]
        if WITH_T:
            value += window_sum(pooled, v, KW, 1, DW) * tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, cast(value, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_wgrad_kernel(
    u_ptr, x_ptr, dw_ptr, dbias_ptr, strips, H, W, OH, OW, C, splits,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BIAS: tl.constexpr, V: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dw[split] = Σ_pixels u · x for one row of taps; dw [splits, C, KH, KW] fp32, dbias [splits, C] fp32.

    A program walks every ``splits``-th block of strips. The partial sums are added afterwards in a fixed order, so that
    the result is the same in every run.
    """
    P: tl.constexpr = (V - 1) * SW + (KW - 1) * DW + 1  # positions of a row that a strip sees
    channel = tl.program_id(0) * BN + tl.arange(0, BN)
    i = tl.program_id(1)
    split = tl.program_id(2)
    live = channel < C
    dw = zeros(BM, BN, KW)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(split * BM, strips, splits * BM):
        strip = first + tl.arange(0, BM)
        inside = (strip < strips)[:, None] & live[None, :]
        image, oh, block = pixel(strip, OH, tl.cdiv(OW, V))
        us = ()
        for v in tl.static_range(V):
            at = ((image * OH + oh) * OW + block * V + v)[:, None] * C + channel[None, :]
            mask = inside & (block * V + v < OW)[:, None]
            us = us + (tl.load(u_ptr + at, mask=mask, other=0.0).to(tl.float32),)
            if BIAS:
                total += us[v]
        h = oh * SH - PH + i * DH
        left = block * (V * SW) - PW
        start = (image * H + h) * W + left
        within = inside & ((h >= 0) & (h < H))[:, None]
        for p in tl.static_range(P):
            x = at_position(x_ptr, start, left, p, within, channel, W, C)
            for v in tl.static_range(V):
                dw = add_at(dw, us[v] * x, tap_of(p, v, KW, SW, DW), KW)
    at = ((split * C + channel) * KH + i).to(tl.int64) * KW
    for j in tl.static_range(KW):
        tl.store(dw_ptr + at + j, tl.sum(dw[j], axis=0), mask=live)
    if BIAS:
        tl.store(dbias_ptr + split * C + channel, tl.sum(total, axis=0), mask=live & (i == 0))


def _strips(call: Call, height: int, width: int) -> tuple[int, dict]:
    """The number of strips in a tensor [N, C, height, width], and the tile of strips and channels of a program."""
    v = tiles.strip(width)
    n = min(64, power_of_two(call.filters))
    values = 512 if call.kernel[1] <= 11 else 128  # a wide window needs many registers
    return call.batch * height * cdiv(width, v), {"V": v, "BM": values // n, "BN": n}


def _grid(call: Call, strips: int, tile: dict) -> tuple[int]:
    return (cdiv(strips, tile["BM"]) * cdiv(call.filters, tile["BN"]),)


def forward(call: Call, x, weights, bias, b, out) -> None:
    """Writes y, and l where it is saved, into ``out``."""
    strips, tile = _strips(call, *call.out_size)
    launch(
        depthwise_fwd_kernel, _grid(call, strips, tile),
        x, weights.operand, weights.alpha, bias, b, out.y, out.l,
        strips, *plane(call).sizes, call.filters, call.b_minus_1, call.cos_eps, *call.norm_eps,
        **plane(call).window, **formula(call),
        ALPHA=weights.alpha is not None, BIAS=bias is not None, SAVE_L=call.saves_linear, **tile,
    )  # fmt: skip


def backward(call: Call, grad, x, weights, b, saved, frozen: bool) -> tuple[Tensor, Tensor | None]:
    """u and t, each ``[N, C, OH, OW]``; t is None where the scale is frozen."""
    u = image(call, call.filters, call.dtype, x)
    t = None if frozen else image(call, call.filters, torch.float32, x)
    strips, tile = _strips(call, *call.out_size)
    launch(
        depthwise_bwd_kernel, _grid(call, strips, tile),
        grad, saved.l if call.saves_linear else saved.y, x, weights.alpha, b, u, t,
        strips, *plane(call).sizes, call.filters, call.b_minus_1, call.cos_eps, *call.norm_eps,
        **plane(call).window, **formula(call),
        ALPHA=weights.alpha is not None, FROZEN=frozen, SAVED_L=call.saves_linear, **tile,
    )  # fmt: skip
    return u, t


def dgrad(call: Call, u: Tensor, t: Tensor | None, weights, x: Tensor) -> Tensor:
    """dx ``[N, C, H, W]`` from u and t."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    strips, tile = _strips(call, *call.in_size)
    launch(
        depthwise_dgrad_kernel, _grid(call, strips, tile), u, t, weights.operand, x, dx,
        strips, *plane(call).sizes, call.filters, **plane(call).window, WITH_T=t is not None, **tile,
    )  # fmt: skip
    return dx


def wgrad(call: Call, u: Tensor, x: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Partial sums ``[splits, C, KH, KW]`` of the gradient of the products' weights, and dbias."""
    strips, tile = _strips(call, *call.out_size)
    blocks, rows = cdiv(call.filters, tile["BN"]), call.kernel[0]
    splits = tiles.splits(strips, blocks * rows, tile["BM"])
    partial, total = shares(call, splits, x.device, with_bias)
    launch(
        depthwise_wgrad_kernel, (blocks, rows, splits), u, x, partial, total,
        strips, *plane(call).sizes, call.filters, splits, **plane(call).window, BIAS=with_bias, **tile,
    )  # fmt: skip
    return partial, None if total is None else total.sum(0)
