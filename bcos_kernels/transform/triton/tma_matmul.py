"""1×1 convolutions and linear layers as matrix products whose tiles TMA copies, the tensor memory accelerator of sm_90.

Tensors are matrices: x [pixels, C], w [F, C], y [pixels, F]. Where a convolution has a stride, a tile is a block of
neighbouring pixels of the output, and the descriptor of x steps over those that are not seen. A program takes tile
after tile, so that the copies for its next tile run while it finishes this one. Descriptors are made on the host and
are kernel parameters: they need no memory of their own, and a CUDA graph captures them by value.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...core.candidate import Tile
from ...core.device import multiprocessors
from ...gpu.functions import matmul, safe_inverse
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tma_tiles
from .arguments import formula
from .formula import exponent, partials, restored, root_gradient, root_norm, transform
from .implicit_gemm import in_registers


@triton.jit
def corner(tile, across, WIDTH: tl.constexpr, BM: tl.constexpr):
    """The row and the column of the first pixel of a tile: ``WIDTH`` pixels side by side, of which a row has ``across``
    times as many; or, with a width of 0, BM pixels one after the other, of which a row has one.
    """
    if WIDTH == 0:
        return tile * BM, 0
    else:
        return tile // across * (BM // WIDTH), tile % across * WIDTH


@triton.jit
def pixels_of(first, left, OW, WIDTH: tl.constexpr, BM: tl.constexpr):
    """The index of each pixel of a tile."""
    place = tl.arange(0, BM)
    if WIDTH == 0:
        return first + place
    else:
        return (first + place // WIDTH).to(tl.int64) * OW + left + place % WIDTH


@triton.jit
def read(desc, first, left, column, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A tile [BM, BN] of pixels and channels."""
    if WIDTH == 0:
        return desc.load([first, column])
    else:
        return tl.reshape(desc.load([first, left, column]), (BM, BN))


@triton.jit
def write(desc, first, left, column, tile, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    if WIDTH == 0:
        desc.store([first, column], tile)
    else:
        desc.store([first, left, column], tl.reshape(tile, (BM // WIDTH, WIDTH, BN)))


@triton.jit
def matmul_fwd_kernel(
    x_desc, w_desc, y_desc, l_desc, alpha_ptr, bias_ptr, b_ptr, n_ptr,
    pixels, C, F, OW, across, tiles, tiles_n, b_minus_1, cos_eps, eps_inside, eps_outside,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr,
    SAVE_L: tl.constexpr, REGISTERS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = transform(alpha · x wᵀ + bias, n), and n [pixels] fp32 and l as the backward needs them.

    Source: B-cos Networks, eq. 3.
    """
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        first, left = corner(tile // tiles_n, across, WIDTH, BM)
        column = tile % tiles_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for k in range(0, C, BK):
            a = read(x_desc, first, left, k, WIDTH, BM, BK)
            b = w_desc.load([column, k])
            if POWER != 1:
                a = in_registers(a, REGISTERS, BM, BK)
                wide = a.to(tl.float32)
                squares += tl.sum(wide * wide, axis=1)
            acc = matmul(a, tl.trans(b), acc, PRECISION)
        filters = column + tl.arange(0, BN)
        if ALPHA:
            acc *= tl.load(alpha_ptr + filters, mask=filters < F, other=0.0)[None, :]
        if BIAS:
            acc += tl.load(bias_ptr + filters, mask=filters < F, other=0.0).to(tl.float32)[None, :]
        inv_n = acc
        if POWER != 1:
            row = pixels_of(first, left, OW, WIDTH, BM)
            n = root_norm(squares, eps_inside, eps_outside)
            tl.store(n_ptr + row, n, mask=(row < pixels) & (column == 0))
            inv_n = safe_inverse(n)[:, None]
        exponent_minus_1, epsilon = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
        y = transform(acc, inv_n, exponent_minus_1, epsilon, POWER, EXACT)
        write(y_desc, first, left, column, cast(y, y_desc.dtype), WIDTH, BM, BN)
        if SAVE_L:
            write(l_desc, first, left, column, cast(acc, l_desc.dtype), WIDTH, BM, BN)


@triton.jit
def mapped(grad, y, map_ptr, f, F):
    """The gradient that has passed map [4, F] fp32: grad · map[0] + (y − map[2]) · map[1] + map[3]."""
    known = f < F
    of_grad = tl.load(map_ptr + f, mask=known, other=0.0)
    of_y = tl.load(map_ptr + F + f, mask=known, other=0.0)
    mean = tl.load(map_ptr + 2 * F + f, mask=known, other=0.0)
    constant = tl.load(map_ptr + 3 * F + f, mask=known, other=0.0) - mean * of_y  # takes fewer registers than y − mean
    return grad * of_grad[None, :] + y * of_y[None, :] + constant[None, :]


@triton.jit
def linear(x, w, alpha, bias_ptr, f, F, PRECISION: tl.constexpr):
    """l = alpha · x wᵀ + bias [pixels, filters], from all channels; alpha is a number or [1, filters]."""
    l = matmul(x, tl.trans(w), tl.zeros((x.shape[0], w.shape[0]), tl.float32), PRECISION) * alpha  # noqa: E741
    if bias_ptr is not None:
        l += tl.load(bias_ptr + f, mask=f < F, other=0.0).to(tl.float32)[None, :]  # noqa: E741
    return l


@triton.jit
def matmul_dgrad_kernel(
    grad_desc, v_desc, x_desc, w_desc, dx_desc, u_desc, n_ptr, alpha_ptr, bias_ptr, b_ptr, map_ptr,
    pixels, F, OW, across, tiles, tiles_n, b_minus_1, cos_eps, eps_outside,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, SAVED_L: tl.constexpr,
    FROZEN: tl.constexpr, FORMS_L: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx = u w + x · t, and u [pixels, F], unless u_desc is None; grad, v [pixels, F], v is l with ``SAVED_L``, else y.

    u = ∂L/∂z and t = ∂L/∂n · dn/dx ÷ x; with ``FROZEN`` the scale is a constant and t is 0. With ``FORMS_L`` l is
    formed again from x, of which a tile has all channels, and v is not read. map_ptr, which may be None where y is
    known, is what grad still has to pass. dx is 0 where a stride of ``SH`` and ``SW`` leaves pixels out.
    """
    OF_L: tl.constexpr = SAVED_L or FORMS_L
    WITH_T: tl.constexpr = not FROZEN and POWER != 1
    # dxᵀ = wᵀ uᵀ takes u from shared memory, where it lies to be copied; as a left operand it would be formed twice.
    TURNED: tl.constexpr = u_desc is not None and not FORMS_L
    exponent_minus_1, epsilon = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
    # Where l is formed, what is known before the loop would take registers of which there are too few (Triton 3.6).
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=not FORMS_L, disable_licm=FORMS_L):
        first, left = corner(tile // tiles_n, across, WIDTH, BM)
        column = tile % tiles_n * BN
        row = pixels_of(first, left, OW, WIDTH, BM)
        acc = tl.zeros((BN, BM) if TURNED else (BM, BN), tl.float32)
        t = tl.zeros((BM,), tl.float32)
        if POWER != 1:
            n = tl.load(n_ptr + row, mask=row < pixels, other=0.0)
            inv_n = safe_inverse(n)[:, None]
        if FORMS_L:
            x = read(x_desc, first, left, column, WIDTH, BM, BN)
        for k in range(0, F, BK):
            f = k + tl.arange(0, BK)
            u = read(grad_desc, first, left, k, WIDTH, BM, BK).to(tl.float32)
            b = w_desc.load([k, column])
            alpha = 1.0
            if ALPHA:
                alpha = tl.load(alpha_ptr + f, mask=f < F, other=0.0)[None, :]
            if POWER != 1:
                if FORMS_L:
                    v = linear(x, b, alpha, bias_ptr, f, F, PRECISION)
                else:
                    v = read(v_desc, first, left, k, WIDTH, BM, BK).to(tl.float32)
                if map_ptr is not None:
                    u = mapped(u, restored(v, inv_n, POWER, OF_L), map_ptr, f, F)
                dl, dn = partials(v, inv_n, exponent_minus_1, epsilon, POWER, FROZEN, EXACT, OF_L)
                if WITH_T:
                    t += tl.sum(u * (restored(v, inv_n, POWER, OF_L) if POWER == 2 else dn), axis=1)
                u *= dl
            u = cast(u * alpha, w_desc.dtype)
            if TURNED:
                acc = matmul(tl.trans(b), tl.trans(u), acc, PRECISION)
            else:
                acc = matmul(u, b, acc, PRECISION)
            if u_desc is not None:  # noqa: SIM102  # known when the kernel is compiled, unlike the other
                if column == 0:
                    write(u_desc, first, left, k, u, WIDTH, BM, BK)
        if TURNED:
            acc = tl.trans(acc)
        if WITH_T:
            if not FORMS_L:
                x = read(x_desc, first, left, column, WIDTH, BM, BN)
            if POWER == 2:
                t *= -safe_inverse(n)
            acc += x.to(tl.float32) * (t * root_gradient(n, eps_outside))[:, None]
        if WIDTH == 0:
            dx_desc.store([first, column], cast(acc, dx_desc.dtype))
        else:
            for i in tl.static_range(SH):
                for j in tl.static_range(SW):
                    values = cast(acc, dx_desc.dtype) if i + j == 0 else tl.zeros((BM, BN), dx_desc.dtype)
                    shaped = tl.reshape(values, (BM // WIDTH, 1, WIDTH, 1, BN))
                    dx_desc.store([first, i, left, j, column], shaped)


def described(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """The descriptor of ``[N, C, H, W]`` in NHWC as a matrix ``[N·H·W, C]`` of such tiles."""
    t = _aligned(t)
    length = t.shape[1]
    return TensorDescriptor(t, [t.numel() // length, length], [length, 1], [rows, columns])


def seen(t: Tensor, rows: int, columns: int, width: int, step: tuple[int, ...] = (1, 1)) -> TensorDescriptor:
    """The same of every ``step``-th pixel, as rows of pixels ``[N·H, W, C]``; with a width of 0 as a matrix."""
    if width == 0:
        return described(t, rows, columns)
    t = _aligned(t)
    images, length, height, across = t.shape
    shape = [images * height // step[0], across // step[1], length]
    return TensorDescriptor(t, shape, [step[0] * across * length, step[1] * length, 1], [rows // width, width, columns])


def with_unseen(t: Tensor, rows: int, columns: int, width: int, step: tuple[int, ...]) -> TensorDescriptor:
    """The same with the pixels between them, ``[N·H, SH, W, SW, C]``; with a width of 0 as a matrix."""
    if width == 0:
        return described(t, rows, columns)
    images, length, height, across = t.shape
    shape = [images * height // step[0], step[0], across // step[1], step[1], length]
    strides = [step[0] * across * length, across * length, step[1] * length, length, 1]
    return TensorDescriptor(t, shape, strides, [rows // width, 1, width, 1, columns])


def _aligned(t: Tensor) -> Tensor:
    return t.clone() if t.data_ptr() % tma_tiles.ALIGNED else t  # a view that begins within a tensor


def programs(x: Tensor, tile: Tile) -> int:
    """The programs that run at the same time."""
    return multiprocessors(x.device) * tma_tiles.residents(tile.warps)


def _walk(call: Call, x: Tensor, tile: Tile, columns: int) -> tuple[int, tuple, tuple[int, ...]]:
    """The width of a tile of pixels, the grid, and the sizes by which programs find their tiles."""
    across, width = call.out_size[-1], tma_tiles.width(call, tile)
    tiles_n = cdiv(columns, tile.n)
    if width == 0:
        tiles = cdiv(call.pixels, tile.m) * tiles_n
    else:
        tiles = cdiv(call.pixels // across, tile.m // width) * (across // width) * tiles_n
    return width, (min(programs(x, tile), tiles),), (across, across // max(1, width), tiles, tiles_n)


def forward(call: Call, x: Tensor, weights, bias, b, out, tile: Tile) -> None:
    """Writes y, n and l into ``out``."""
    m, n, k = tile.m, tile.n, tile.k
    width, grid, walk = _walk(call, x, tile, call.filters)
    launch(
        matmul_fwd_kernel, grid,
        seen(x, m, k, width, call.stride), described(weights.operand, n, k), seen(out.y, m, n, width),
        seen(out.l, m, n, width) if call.saves_linear else None, weights.alpha, bias, b, out.n,
        call.pixels, call.channels, call.filters, *walk, call.b_minus_1, call.cos_eps, *call.norm_eps,
        **formula(call), ALPHA=weights.alpha is not None, BIAS=bias is not None, SAVE_L=call.saves_linear,
        REGISTERS=tma_tiles.in_registers(call), PRECISION=call.precision, WIDTH=width, BM=m, BN=n, BK=k,
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip


def dgrad(
    call: Call, grad: Tensor, v, n, weights, bias, b, gradient_map, x: Tensor,
    direction: str, frozen: bool, with_u: bool, tile: Tile,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """dx ``[N, C, H, W]`` and u ``[N, F, OH, OW]``, which is None unless ``with_u``; ``frozen`` makes s a constant.

    v is l where that is saved, else y, and None where b = 1.
    """
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    u = torch.empty_like(grad, dtype=call.dtype, memory_format=torch.channels_last) if with_u else None
    m, columns, k = tile.m, tile.n, tile.k
    width, grid, walk = _walk(call, x, tile, call.channels)
    forms_l = tma_tiles.forms_l(call, direction, tile, direction == "training")
    reads_x = forms_l or not (frozen or call.power == 1)
    launch(
        matmul_dgrad_kernel, grid,
        seen(grad, m, k, width), None if call.power == 1 or forms_l else seen(v, m, k, width),
        seen(x, m, columns, width, call.stride) if reads_x else None, described(weights.operand, k, columns),
        with_unseen(dx, m, columns, width, call.stride), None if u is None else seen(u, m, k, width),
        n, weights.alpha, bias if forms_l else None, b, gradient_map,
        call.pixels, call.filters, *walk, call.b_minus_1, call.cos_eps, call.norm_eps[1],
        **formula(call), ALPHA=weights.alpha is not None, SAVED_L=call.saves_linear, FROZEN=frozen, FORMS_L=forms_l,
        PRECISION=call.precision, WIDTH=width, SH=call.stride[0], SW=call.stride[1], BM=m, BN=columns, BK=k,
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return dx, u
