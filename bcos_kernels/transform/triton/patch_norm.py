"""The patch norm for a convolution by the vendor, and the sums over pixels and patches from which it is formed.

A row is one group of one pixel: x [N, H, W, G·CG] is a matrix [N·H·W·G, CG].
"""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.call import changed
from ...gpu.functions import pixel, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from .arguments import PIXEL, Plane, across, image, plane, row_tile
from .formula import root_gradient, root_norm
from .window import pooled_norm_gradient


@triton.jit
def patch_norm_squares_kernel(
    x_ptr, v_ptr, out_ptr, rows, CG, eps_inside, eps_outside,
    SQUARES: tl.constexpr, ROOT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out[row] = Σ_c x·v, where v is x if ``SQUARES``; with ``ROOT`` its norm, which is the patch norm where a
    patch is one pixel.
    """
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < rows
    start = row.to(tl.int64)[:, None] * CG
    total = tl.zeros((BM,), SUMS)
    for c0 in range(0, CG, BN):
        c = c0 + tl.arange(0, BN)
        mask = inside[:, None] & (c < CG)[None, :]
        x = tl.load(x_ptr + start + c[None, :], mask=mask, other=0.0).to(SUMS)
        v = x
        if not SQUARES:
            v = tl.load(v_ptr + start + c[None, :], mask=mask, other=0.0).to(SUMS)
        total += tl.sum(x * v, axis=1)
    out = root_norm(total, eps_inside, eps_outside) if ROOT else total
    tl.store(out_ptr + row, out, mask=inside)


@triton.jit
def patch_norm_fwd_kernel(
    sums_ptr, out_ptr, rows, H, W, OH, OW, eps_inside, eps_outside, G: tl.constexpr, ROOT: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """out [N, OH, OW, G] = the window sum of sums [N, H, W, G]; with ``ROOT`` the patch norm formed from it."""
    SUMS: tl.constexpr = sums_ptr.dtype.element_ty
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = row < rows
    image, oh, ow = pixel(row // G, OH, OW)
    total = tl.zeros((BM,), SUMS)
    for tap in range(KH * KW):
        h = oh * SH - PH + tap // KW * DH
        w = ow * SW - PW + tap % KW * DW
        sees = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        total += tl.load(sums_ptr + ((image * H + h) * W + w) * G + row % G, mask=sees, other=0.0)
    out = root_norm(total, eps_inside, eps_outside) if ROOT else total
    tl.store(out_ptr + row, out, mask=inside)


@triton.jit
def patch_norm_bwd_kernel(
    dx_ptr, x_ptr, t_ptr, root_ptr, rows, H, W, OH, OW, CG, G: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx = x · poolᵀ(t), added to what dx holds if ``ADD``; dx, x [N, H, W, G·CG], t [N, OH, OW, G].

    x is first divided by root [N, H, W, G], unless that is None.
    """
    SUMS: tl.constexpr = sums_of(x_ptr.dtype.element_ty)
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
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(SUMS)
        if root_ptr is not None:
            x *= root_gradient(tl.load(root_ptr + row, mask=inside, other=1.0), 0.0, True)[:, None]
        dx = x * pooled[:, None]
        if ADD:
            dx += tl.load(dx_ptr + at, mask=mask, other=0.0).to(SUMS)
        tl.store(dx_ptr + at, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


def squares(call: Call, x: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ_c x² of each pixel and group; with ``out``, the norm of patches of one pixel, written into it."""
    return _pixel_sums(call, x, None, out)


def _pixel_sums(call: Call, x: Tensor, v: Tensor | None, out: Tensor | None = None) -> Tensor:
    root = out is not None
    if out is None:
        out = torch.empty((call.in_pixels, call.groups), dtype=call.sums, device=x.device)
    rows = call.in_pixels * call.groups
    m, n = row_tile(call, call.group_channels)
    launch(
        patch_norm_squares_kernel, (cdiv(rows, m),), x, v, out, rows, call.group_channels, *call.norm_eps,
        SQUARES=v is None, ROOT=root, BM=m, BN=n,
    )  # fmt: skip
    return out


def _plane_sums(call: Call, plane: Plane, sums: Tensor, out: Tensor, root: bool) -> None:
    """out = the sums over the windows of a plane, one for each of its pixels and groups; with ``root`` the norms."""
    rows = out.numel()
    launch(
        patch_norm_fwd_kernel, (cdiv(rows, 256),), sums, out, rows, *plane.sizes, *call.norm_eps,
        G=call.groups, ROOT=root, **plane.window, BM=256,
    )  # fmt: skip


def _window_sums(call: Call, sums: Tensor, out: Tensor, root: bool) -> Tensor:
    """out = the window sums of ``sums`` [pixels, groups], without those at the border; with ``root`` the norms."""
    _clear_border(call, sums)
    if len(call.in_size) == 3:
        columns = across(call)
        half = sums.new_empty(call.batch * columns.in_size[0] * columns.in_size[1], call.groups)
        _plane_sums(call, plane(call), sums, half, root=False)
        _plane_sums(call, columns, half, out, root)
    else:
        _plane_sums(call, plane(call), sums, out, root)
    return out


def _clear_border(call: Call, values: Tensor) -> None:
    """Sets to 0 what the patch norm takes as 0 of ``values`` [pixels, groups] of the input."""
    image = values.view(call.batch, *call.in_size, call.groups)
    for index, width in enumerate(call.spec.border):
        axis, high = 1 + index // 2, index % 2
        image.narrow(axis, image.shape[axis] - width if high else 0, width).zero_()


def norm(call: Call, x: Tensor, n: Tensor) -> Tensor | None:
    """n ``[N, G, OH, OW]``, or None for b = 1. It is written into the given tensor unless that is empty."""
    if call.power == 1:
        return None
    if n.numel() == 0:
        n = image(call, call.groups, call.sums, x)
    if call.pixelwise:
        return squares(call, x, n)
    return _window_sums(call, squares(call, x), n, root=True)


def roots(call: Call, x: Tensor) -> Tensor | None:
    """n without the epsilon beside its root, where the call divides x by it; else None."""
    if not call.divides_x:
        return None
    spec = changed(call.spec, norm_eps=(0.0, 0.0))
    return norm(changed(call, spec=spec), x, x.new_empty(0))


def products(call: Call, x: Tensor, v: Tensor) -> Tensor:
    """Σ x·v over each patch and group, in the order of n."""
    sums = _pixel_sums(call, x, v)
    if call.pixelwise:
        return sums
    return _window_sums(call, sums, image(call, call.groups, call.sums, x), root=False)


def add_gradient(call: Call, dx: Tensor, x: Tensor, t: Tensor) -> None:
    """Adds x · poolᵀ(t) to dx in place; or (x ÷ its norm) · t, where the call divides x."""
    _gradient(call, dx, x, t, add=True, root=roots(call, x))


def gradient(call: Call, x: Tensor, t: Tensor) -> Tensor:
    """x · poolᵀ(t), in the dtype of x."""
    dx = torch.empty_like(x)
    _gradient(call, dx, x, t, add=False)
    return dx


def _gradient(call: Call, dx: Tensor, x: Tensor, t: Tensor, add: bool, root: Tensor | None = None) -> None:
    seen = plane(call)
    if not call.planar:
        t, seen = _spread(call, t), PIXEL
    _multiply(call, seen, dx, x, t, call.group_channels, add, root)


def _spread(call: Call, t: Tensor) -> Tensor:
    """poolᵀ(t) [pixels, groups] of the input, 0 at the border: what multiplies x in dx."""
    if len(call.in_size) == 3:
        t = _pooled(call, across(call), t)
    pooled = _pooled(call, plane(call), t)
    _clear_border(call, pooled)
    return pooled


def _pooled(call: Call, seen: Plane, t: Tensor) -> Tensor:
    """poolᵀ of a plane's window, from t of its output's pixels and groups."""
    images = t.numel() // (prod(seen.out_size) * call.groups)
    ones = t.new_ones(images * prod(seen.in_size), call.groups)
    out = torch.empty_like(ones)
    _multiply(call, seen, out, ones, t, 1, add=False)
    return out


def _multiply(call: Call, seen: Plane, dx: Tensor, x: Tensor, t: Tensor, channels: int, add: bool, root=None) -> None:
    rows = x.numel() // channels
    m, n = row_tile(call, channels)
    launch(
        patch_norm_bwd_kernel, (cdiv(rows, m),), dx, x, t, root, rows, *seen.sizes, channels,
        G=call.groups, **seen.window, ADD=add, BM=m, BN=n,
    )  # fmt: skip
