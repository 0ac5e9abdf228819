"""1×1 convolutions and linear layers as matrix products whose tiles TMA copies, the tensor memory accelerator of sm_90.

Tensors are matrices: x [pixels, C], w [F, C], y [pixels, F]. A program takes tile after tile, so that the copies for
its next tile run while it finishes this one. Descriptors are made on the host and are kernel parameters: they need no
memory of their own, and a CUDA graph captures them by value.
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
from .formula import exponent, partials, restored, root_norm, transform
from .implicit_gemm import in_registers


@triton.jit
def matmul_fwd_kernel(
    x_desc, w_desc, y_desc, l_desc, alpha_ptr, bias_ptr, b_ptr, n_ptr,
    pixels, C, F, tiles, tiles_n, b_minus_1, cos_eps, eps_inside, eps_outside,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr,
    SAVE_L: tl.constexpr, REGISTERS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y = transform(alpha · x wᵀ + bias, n), and n [pixels] fp32 and l as the backward needs them.

    Source: B-cos Networks, eq. 3.
    """
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        first = tile // tiles_n * BM
        column = tile % tiles_n * BN
        acc = tl.zeros((BM, BN), tl.float32)
        squares = tl.zeros((BM,), tl.float32)
        for k in range(0, C, BK):
            a = x_desc.load([first, k])
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
            row = first + tl.arange(0, BM)
            n = root_norm(squares, eps_inside, eps_outside)
            tl.store(n_ptr + row, n, mask=(row < pixels) & (column == 0))
            inv_n = safe_inverse(n)[:, None]
        exponent_minus_1, epsilon = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
        y = transform(acc, inv_n, exponent_minus_1, epsilon, POWER, EXACT)
        y_desc.store([first, column], cast(y, y_desc.dtype))
        if SAVE_L:
            l_desc.store([first, column], cast(acc, l_desc.dtype))


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
    grad_desc, v_desc, x_desc, w_desc, dx_desc, n_ptr, alpha_ptr, bias_ptr, b_ptr, map_ptr,
    pixels, F, tiles, tiles_n, b_minus_1, cos_eps,
    POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, ALPHA: tl.constexpr, SAVED_L: tl.constexpr,
    FORMS_L: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx = u w with u = ∂L/∂z where the scale is a constant; grad, v [pixels, F], v is l with ``SAVED_L``, else y.

    With ``FORMS_L`` l is formed again from x, of which a tile has all channels, and v is not read. map_ptr, which may
    be None where y is known, is what grad still has to pass.
    """
    OF_L: tl.constexpr = SAVED_L or FORMS_L
    exponent_minus_1, epsilon = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, tl.float32)
    # Where l is formed, what is known before the loop would take registers of which there are too few (Triton 3.6).
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=not FORMS_L, disable_licm=FORMS_L):
        first = tile // tiles_n * BM
        column = tile % tiles_n * BN
        row = first + tl.arange(0, BM)
        acc = tl.zeros((BM, BN), tl.float32)
        if POWER != 1:
            inv_n = safe_inverse(tl.load(n_ptr + row, mask=row < pixels, other=0.0))[:, None]
        if FORMS_L:
            x = x_desc.load([first, column])
        for k in range(0, F, BK):
            f = k + tl.arange(0, BK)
            u = grad_desc.load([first, k]).to(tl.float32)
            b = w_desc.load([k, column])
            alpha = 1.0
            if ALPHA:
                alpha = tl.load(alpha_ptr + f, mask=f < F, other=0.0)[None, :]
            if POWER != 1:
                if FORMS_L:
                    v = linear(x, b, alpha, bias_ptr, f, F, PRECISION)
                else:
                    v = v_desc.load([first, k]).to(tl.float32)
                if map_ptr is not None:
                    u = mapped(u, restored(v, inv_n, POWER, OF_L), map_ptr, f, F)
                u *= partials(v, inv_n, exponent_minus_1, epsilon, POWER, True, EXACT, OF_L)[0]
            acc = matmul(cast(u * alpha, w_desc.dtype), b, acc, PRECISION)
        dx_desc.store([first, column], cast(acc, dx_desc.dtype))


def described(t: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """The descriptor of ``[N, C, H, W]`` in NHWC as a matrix ``[N·H·W, C]`` of such tiles."""
    if t.data_ptr() % tma_tiles.ALIGNED:  # a view that begins within a tensor
        t = t.clone()
    length = t.shape[1]
    return TensorDescriptor(t, [t.numel() // length, length], [length, 1], [rows, columns])


def programs(x: Tensor, tile: Tile) -> int:
    """The programs that run at the same time."""
    return multiprocessors(x.device) * tma_tiles.residents(tile.warps)


def forward(call: Call, x: Tensor, weights, bias, b, out, tile: Tile) -> None:
    """Writes y, n and l into ``out``."""
    m, n, k = tile.m, tile.n, tile.k
    tiles, tiles_n = cdiv(call.pixels, m) * cdiv(call.filters, n), cdiv(call.filters, n)
    launch(
        matmul_fwd_kernel, (min(programs(x, tile), tiles),),
        described(x, m, k), described(weights.operand, n, k), described(out.y, m, n),
        described(out.l, m, n) if call.saves_linear else None, weights.alpha, bias, b, out.n,
        call.pixels, call.channels, call.filters, tiles, tiles_n, call.b_minus_1, call.cos_eps, *call.norm_eps,
        **formula(call), ALPHA=weights.alpha is not None, BIAS=bias is not None, SAVE_L=call.saves_linear,
        REGISTERS=tma_tiles.in_registers(call), PRECISION=call.precision, BM=m, BN=n, BK=k,
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip


def dgrad(call: Call, grad: Tensor, v, n, weights, bias, b, gradient_map, x: Tensor, tile: Tile) -> Tensor:
    """dx ``[N, C, H, W]`` where the scale is a constant; v is l where that is saved, else y, and None where b = 1."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    rows, columns, k = tile.m, tile.n, tile.k
    tiles, tiles_n = cdiv(call.pixels, rows) * cdiv(call.channels, columns), cdiv(call.channels, columns)
    forms_l = tma_tiles.forms_l(call, "explanation", tile)
    launch(
        matmul_dgrad_kernel, (min(programs(x, tile), tiles),),
        described(grad, rows, k), None if call.power == 1 or forms_l else described(v, rows, k),
        described(x, rows, columns) if forms_l else None, described(weights.operand, k, columns),
        described(dx, rows, columns), n, weights.alpha, bias if forms_l else None, b, gradient_map,
        call.pixels, call.filters, tiles, tiles_n, call.b_minus_1, call.cos_eps,
        **formula(call), ALPHA=weights.alpha is not None, SAVED_L=call.saves_linear, FORMS_L=forms_l,
        PRECISION=call.precision, BM=rows, BN=columns, BK=k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return dx
