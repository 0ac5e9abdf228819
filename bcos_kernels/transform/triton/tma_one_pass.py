"""Both gradients of a 1×1 convolution or a linear layer from one reading of the tensors, for few filters and channels.

Tensors and descriptors are those of :mod:`bcos_kernels.transform.triton.tma_matmul`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...core.candidate import Tile
from ...gpu.functions import matmul, safe_inverse
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from . import tma_tiles
from .arguments import shares
from .formula import partials, restored, root_gradient
from .tma_matmul import described, linear, mapped, programs


@triton.jit
def replaced(tiles, new, at: tl.constexpr, COUNT: tl.constexpr):
    """The tuple ``tiles`` of that many tiles with ``new`` in one place."""
    found = ()
    for i in tl.static_range(COUNT):
        if i == at:
            found = found + (new,)
        else:
            found = found + (tiles[i],)
    return found


@triton.jit
def matmul_training_kernel(
    grad_desc, v_desc, x_desc, w_desc, dx_desc, n_ptr, alpha_ptr, bias_ptr, map_ptr, dw_ptr, dbias_ptr,
    pixels, C, F, splits, eps_outside,
    POWER: tl.constexpr, ALPHA: tl.constexpr, BIAS: tl.constexpr, FROZEN: tl.constexpr, SAVED_L: tl.constexpr,
    FORMS_L: tl.constexpr, WITH_DX: tl.constexpr, WITH_DW: tl.constexpr, BLOCKS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dx = u w + x · t and dw[split] = Σ_pixels uᵀ x over every ``splits``-th block of pixels, from one u and one x.

    u = ∂L/∂z and t = ∂L/∂n · dn/dx ÷ x; v is l with ``SAVED_L``, else y. With ``FORMS_L`` l is formed again from x, of
    which a program has all channels, and v is not read. A program has BN channels and all filters, in ``BLOCKS`` blocks
    of BK. dw [splits, F, C] fp32; dbias [splits, F] fp32, the column sums of u. map_ptr, which may be None where y is
    known, is what grad still has to pass.
    """
    OF_L: tl.constexpr = SAVED_L or FORMS_L
    WITH_T: tl.constexpr = WITH_DX and not FROZEN and POWER != 1
    split = tl.program_id(0) % splits
    column = tl.program_id(0) // splits * BN
    dw = ()
    total = ()
    w = ()
    for block in tl.static_range(BLOCKS):
        dw = dw + (tl.zeros((BN, BK), tl.float32),)
        total = total + (tl.zeros((BK,), tl.float32),)
        w = w + (w_desc.load([block * BK, column]),)
    # What is formed of the addresses of w would else be kept in registers, of which there are too few.
    for first in tl.range(split * BM, pixels, splits * BM, disable_licm=True):
        if POWER != 1:
            row = first + tl.arange(0, BM)
            n = tl.load(n_ptr + row, mask=row < pixels, other=0.0)
            inv_n = safe_inverse(n)[:, None]
        x = x_desc.load([first, column])
        dx = tl.zeros((BM, BN) if FORMS_L else (BN, BM), tl.float32)
        t = tl.zeros((BM,), tl.float32)
        for block in tl.static_range(BLOCKS):
            f = block * BK + tl.arange(0, BK)
            u = grad_desc.load([first, block * BK]).to(tl.float32)
            alpha = 1.0
            if ALPHA:
                alpha = tl.load(alpha_ptr + f, mask=f < F, other=0.0)[None, :]
            if POWER != 1:
                if FORMS_L:
                    v = linear(x, w[block], alpha, bias_ptr, f, F, PRECISION)
                else:
                    v = v_desc.load([first, block * BK]).to(tl.float32)
                if map_ptr is not None or WITH_T:
                    y = restored(v, inv_n, POWER, OF_L)
                if map_ptr is not None:
                    u = mapped(u, y, map_ptr, f, F)
                if WITH_T:
                    t += tl.sum(u * y, axis=1)
                u *= partials(v, inv_n, 1.0, 0.0, POWER, FROZEN, EXACT, OF_L)[0]
            u *= alpha
            if BIAS:
                total = replaced(total, total[block] + tl.sum(u, axis=0), block, BLOCKS)
            u = cast(u, w_desc.dtype)
            if WITH_DX:
                # u is a left operand where it has the layout of l, a product itself; else one copy of it serves both.
                if FORMS_L:
                    dx = matmul(u, w[block], dx, PRECISION)
                else:
                    dx = matmul(tl.trans(w[block]), tl.trans(u), dx, PRECISION)
            if WITH_DW:
                dw = replaced(dw, matmul(tl.trans(x), u, dw[block], PRECISION), block, BLOCKS)
        if not FORMS_L:
            dx = tl.trans(dx)
        if WITH_T:
            dx -= x.to(tl.float32) * (t * safe_inverse(n) * root_gradient(n, eps_outside))[:, None]
        if WITH_DX:
            dx_desc.store([first, column], cast(dx, dx_desc.dtype))
    channel = column + tl.arange(0, BN)
    for block in tl.static_range(BLOCKS):
        f = block * BK + tl.arange(0, BK)
        if WITH_DW:
            at = (split * F + f).to(tl.int64)[:, None] * C + channel[None, :]
            tl.store(dw_ptr + at, tl.trans(dw[block]), mask=(f < F)[:, None] & (channel < C)[None, :])
        if BIAS:
            tl.store(dbias_ptr + split * F + f, total[block], mask=(f < F) & (column == 0))


def gradients(
    call: Call, grad, v, n, weights, bias, gradient_map, x, frozen: bool, needs, tile: Tile
) -> tuple[Tensor | None, ...]:
    """dx ``[N, C, H, W]``, partial sums ``[1, F, 1, 1, C]`` of the gradient of the products' weights, and dbias."""
    dx = torch.empty_like(x, memory_format=torch.channels_last) if needs[0] else None
    rows, columns, k = tile.m, tile.n, tile.k
    tiles_n = cdiv(call.channels, columns)
    splits = max(1, min(programs(x, tile) // tiles_n, cdiv(call.pixels, rows)))
    partial, total = shares(call, splits if needs[1] else 0, x.device, False)
    if needs[2]:
        total = torch.empty((splits, call.filters), dtype=torch.float32, device=x.device)
    forms_l = tma_tiles.forms_l(call, "training", tile)
    launch(
        matmul_training_kernel, (splits * tiles_n,),
        described(grad, rows, k), None if call.power == 1 or forms_l else described(v, rows, k),
        described(x, rows, columns),
        described(weights.operand, k, columns), None if dx is None else described(dx, rows, columns),
        n, weights.alpha, bias if forms_l else None, gradient_map, partial, total,
        call.pixels, call.channels, call.filters, splits, call.norm_eps[1],
        POWER=call.power, ALPHA=weights.alpha is not None, BIAS=needs[2], FROZEN=frozen, SAVED_L=call.saves_linear,
        FORMS_L=forms_l, WITH_DX=needs[0], WITH_DW=needs[1], BLOCKS=cdiv(call.filters, k), EXACT=call.exact,
        PRECISION=call.precision, BM=rows, BN=columns, BK=k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return dx, partial.sum(0) if needs[1] else None, None if total is None else total.sum(0)
