"""The patch norm for a convolution by the vendor, and the sums of squares from which a patch norm is summed.

A row is one group of one pixel: x [N, H, W, G·CG] is a matrix [N·H·W·G, CG].
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.launch import cdiv, launch
from ...gpu.rounding import cast
from ..call import Call
from .arguments import image, row_tile, sizes, window
from .formula import root_norm
from .window import pixel, pooled_norm_gradient


@triton.jit
def patch_norm_squares_kernel(
    x_ptr, out_ptr, rows, CG, eps_inside, eps_outside, ROOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """out[row] = Σ_c x² in fp32; with ``ROOT`` its norm, which is the patch norm where a patch is one pixel."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < rows
    start = x_ptr + row.to(tl.int64) * CG
    squares = tl.zeros((BM,), tl.float32)
    for c0 in range(0, CG, BN):
        c = c0 + tl.arange(0, BN)
        x = tl.load(start[:, None] + c[None, :], mask=inside[:, None] & (c < CG)[None, :], other=0.0).to(tl.float32)
        squares += tl.sum(x * x, axis=1)
    out = root_norm(squares, eps_inside, eps_outside) if ROOT else squares
    tl.store(out_ptr + row, out, mask=inside)


@triton.jit
def patch_norm_fwd_kernel(
    squares_ptr, n_ptr, rows, H, W, OH, OW, eps_inside, eps_outside, G: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """n [N, OH, OW, G] = √(window sum of squares [N, H, W, G] + eps_inside) + eps_outside, fp32."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < rows
    image, oh, ow = pixel(row // G, OH, OW)
    squares = tl.zeros((BM,), tl.float32)
    for tap in range(KH * KW):
        h = oh * SH - PH + tap // KW * DH
        w = ow * SW - PW + tap % KW * DW
        sees = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        squares += tl.load(squares_ptr + ((image * H + h) * W + w) * G + row % G, mask=sees, other=0.0)
    tl.store(n_ptr + row, root_norm(squares, eps_inside, eps_outside), mask=inside)


@triton.jit
def patch_norm_bwd_kernel(
    dx_ptr, x_ptr, t_ptr, rows, H, W, OH, OW, CG, G: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Adds x · poolᵀ(t) to dx in place; dx, x [N, H, W, G·CG], t [N, OH, OW, G]."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < rows
    image, h, w = pixel(row // G, H, W)
    pooled = pooled_norm_gradient(
        t_ptr, image, h, w, row % G, inside, OH, OW, G, KH, KW, SH, SW, PH, PW, DH, DW
    )  # fmt: skip
    for c0 in range(0, CG, BN):
        c = c0 + tl.arange(0, BN)
        at = row.to(tl.int64)[:, None] * CG + c[None, :]
        mask = inside[:, None] & (c < CG)[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = tl.load(dx_ptr + at, mask=mask, other=0.0).to(tl.float32) + x * pooled[:, None]
        tl.store(dx_ptr + at, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


def squares(call: Call, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ_c x² of each pixel and group; with ``out``, the norm of patches of one pixel, written into it."""
    root = out is not None
    if out is None:
        out = torch.empty((call.in_pixels, call.groups), dtype=torch.float32, device=x.device)
    rows = call.in_pixels * call.groups
    m, n = row_tile(call.group_channels)
    launch(
        patch_norm_squares_kernel, (cdiv(rows, m),), x, out, rows, call.group_channels, *call.norm_eps,
        ROOT=root, BM=m, BN=n,
    )  # fmt: skip
    return out


def norm(call: Call, x: Tensor, n: Tensor) -> Tensor | None:
    """n ``[N, G, OH, OW]``, or None for b = 1. It is written into the given tensor unless that is empty."""
    if call.power == 1:
        return None
    if n.numel() == 0:
        n = image(call, call.groups, torch.float32, x)
    if call.taps == 1 and call.stride == (1, 1) and call.padding == (0, 0):
        return squares(call, x, n)
    rows = call.pixels * call.groups
    launch(
        patch_norm_fwd_kernel, (cdiv(rows, 256),), squares(call, x), n, rows, *sizes(call), *call.norm_eps,
        G=call.groups, **window(call), BM=256,
    )  # fmt: skip
    return n


def add_gradient(call: Call, dx: Tensor, x: Tensor, t: Tensor) -> None:
    """Adds x · poolᵀ(t) to dx in place."""
    rows = call.in_pixels * call.groups
    m, n = row_tile(call.group_channels)
    launch(
        patch_norm_bwd_kernel, (cdiv(rows, m),), dx, x, t, rows, *sizes(call), call.group_channels,
        G=call.groups, **window(call), BM=m, BN=n,
    )  # fmt: skip
