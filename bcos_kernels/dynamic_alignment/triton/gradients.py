"""The gradients of dynamic alignment units: of the patches, of h, and of the weight and the bias.

With the gradient g at y, a dynamic weight w and its patch u have the gradients ::

    du = Σ_o of_u · w            dw = of_u · u + of_w · w            of_u = g · scale, of_w = of_u · slope · wᵀu

The second term of dw never meets w: its part of dh takes the Gram matrices of the weight, and its part of dweight
those of h. That is so for the norms whose slope multiplies w itself: those of ``"l1"`` are in ``signs``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import matmul, pixel, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from ..spec import Outputs
from . import tiles
from .arguments import precision, wide_precision, window
from .formula import scale, slope
from .forward import dynamic_weights, rows_of_h

__all__ = ["added", "dh", "du", "dweight", "patches", "upstream", "wide_weight"]


@triton.jit
def alignment_upstream_kernel(
    grad_ptr, norm_ptr, l_ptr, of_u_ptr, of_w_ptr, pixels, plane, outputs, NORM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """of_u and of_w [O, N·OH·OW] from the gradient [N, O, OH, OW] at y."""
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    o = (tl.program_id(0) % outputs).to(tl.int64)
    site = tl.program_id(0) // outputs * BN + tl.arange(0, BN)
    inside = site < pixels
    at = ((site // plane).to(tl.int64) * outputs + o) * plane + site % plane
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
    kept = o * pixels + site
    norm = tl.load(norm_ptr + kept, mask=inside, other=0.0)
    l = tl.load(l_ptr + kept, mask=inside, other=0.0)  # noqa: E741
    of_u = grad * scale(norm, NORM)
    tl.store(of_u_ptr + kept, of_u, mask=inside)
    tl.store(of_w_ptr + kept, of_u * l * slope(norm, NORM), mask=inside)


@triton.jit
def alignment_du_kernel(
    of_u_ptr, norm_ptr, h_ptr, w_ptr, bias_ptr, du_ptr, sites, pixels, plane, patch, outputs, rank, tiles_p,
    NORM: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """du [.., P, OH·OW] from of_u [O, sites] or, with norms, from the gradient [.., O, OH, OW] at y.

    Sites are pixels, those of several rows of the same images apart.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    site = tl.program_id(0) // tiles_p * BM + tl.arange(0, BM)
    p = tl.program_id(0) % tiles_p * BN + tl.arange(0, BN)
    inside = site < sites
    known = p < patch
    image = (site // plane).to(tl.int64)
    h_rows = h_ptr + (site % pixels).to(tl.int64) * rank
    h = rows_of_h(h_rows, inside, 0, rank, BK)
    zeros = tl.zeros((BM,), tl.int64)  # make products of 64 bits
    du = tl.zeros((BM, BN), SUMS)
    for o in range(outputs):
        row = p.to(tl.int64) * outputs + o
        w = dynamic_weights(h, h_rows, w_ptr, bias_ptr, row, inside, known, rank, WHOLE, PRECISION, BM, BN, BK)
        if norm_ptr is None:
            of_u = tl.load(of_u_ptr + o * (zeros + sites) + site, mask=inside, other=0.0)
        else:
            at = (image * outputs + o) * plane + site % plane
            of_u = tl.load(of_u_ptr + at, mask=inside, other=0.0).to(SUMS)
            of_u *= scale(tl.load(norm_ptr + o * (zeros + pixels) + site % pixels, mask=inside, other=0.0), NORM)
        du += of_u[:, None] * w
    at = (image[:, None] * patch + p[None, :]) * plane + (site % plane)[:, None]
    tl.store(du_ptr + at, du, mask=inside[:, None] & known[None, :])


@triton.jit
def alignment_patches_kernel(
    x_ptr, u_ptr, pixels, C, H, W, OH, OW, stride, tiles_p,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """u [N·OH·OW, stride], of which the first P values of a row are a patch of x and the others 0."""
    TAPS: tl.constexpr = KH * KW
    site = tl.program_id(0) // tiles_p * BM + tl.arange(0, BM)
    p = tl.program_id(0) % tiles_p * BN + tl.arange(0, BN)
    inside = site < pixels
    image, oh, ow = pixel(site, OH, OW)
    tap = p % TAPS
    h = (oh * SH - PH)[:, None] + (tap // KW)[None, :]
    w = (ow * SW - PW)[:, None] + (tap % KW)[None, :]
    sees = inside[:, None] & (p < C * TAPS)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    at = ((image[:, None] * C + (p // TAPS)[None, :]) * H + h) * W + w
    u = tl.load(x_ptr + at, mask=sees, other=0.0)
    tl.store(u_ptr + site.to(tl.int64)[:, None] * stride + p[None, :], u, mask=inside[:, None] & (p < stride)[None, :])


@triton.jit
def alignment_dh_kernel(
    of_u_ptr, of_w_ptr, u_ptr, h_ptr, w_ptr, gram_ptr, of_bias_ptr, dh_ptr,
    pixels, patch, stride, outputs, rank, tiles_r, splits,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dh [splits, N·OH·OW, R], whose parts are sums over every ``splits``-th output.

    gram [O, R, R] is the weight's Gram matrix of each output, of_bias [O, R] the product of its weight and bias or
    None. gram is bf16 or of the dtype of sums, because fp16 may not hold it.
    """
    SUMS: tl.constexpr = sums_of(w_ptr.dtype.element_ty)
    site = tl.program_id(0) // tiles_r * BM + tl.arange(0, BM)
    r = tl.program_id(0) % tiles_r * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    inside = site < pixels
    known = r < rank
    u_rows = u_ptr + site.to(tl.int64) * stride
    h_rows = h_ptr + site.to(tl.int64) * rank
    k = tl.arange(0, BK)
    wide = tl.zeros((BM,), tl.int64) + pixels  # makes products of 64 bits
    dh = tl.zeros((BM, BN), SUMS)
    for o in range(split, outputs, splits):
        by_u = tl.zeros((BM, BN), SUMS)
        for start in range(0, patch, BK):
            p = start + k
            u = tl.load(u_rows[:, None] + p[None, :], mask=inside[:, None] & (p < stride)[None, :], other=0.0)
            row = p.to(tl.int64) * outputs + o
            w = tl.load(w_ptr + row[:, None] * rank + r[None, :], mask=(p < patch)[:, None] & known[None, :], other=0.0)
            by_u = matmul(u, w, by_u, PRECISION)
        by_w = tl.zeros((BM, BN), SUMS)
        for start in range(0, rank, BK):
            s = start + k
            h = tl.load(h_rows[:, None] + s[None, :], mask=inside[:, None] & (s < rank)[None, :], other=0.0)
            row = o * rank + s.to(tl.int64)
            gram = tl.load(
                gram_ptr + row[:, None] * rank + r[None, :], mask=(s < rank)[:, None] & known[None, :], other=0.0
            )
            by_w = matmul(h.to(gram.dtype), gram, by_w, WIDE)
        if of_bias_ptr is not None:
            by_w += tl.load(of_bias_ptr + o * rank + r, mask=known, other=0.0)[None, :]
        at = o * wide + site
        of_u = tl.load(of_u_ptr + at, mask=inside, other=0.0)
        of_w = tl.load(of_w_ptr + at, mask=inside, other=0.0)
        dh += of_u[:, None] * by_u + of_w[:, None] * by_w
    at = (split.to(tl.int64) * pixels + site)[:, None] * rank + r[None, :]
    tl.store(dh_ptr + at, dh, mask=inside[:, None] & known[None, :])


@triton.jit
def alignment_dweight_kernel(
    factor_ptr, rows_ptr, h_ptr, out_ptr, pixels, rows, stride, outputs, rank, columns, tiles_m, tiles_n, splits,
    ONES: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [splits, rows, O, columns] = Σ_pixels row · factor · h, whose parts have every ``splits``-th block.

    row [N·OH·OW, stride] are patches or h; factor [O, N·OH·OW]; h has R columns. ``ONES`` puts ones in the place
    of h, so that a tile's columns are outputs. ``WIDE`` multiplies in the dtype of sums: fp16 may not hold factor · h.
    """
    SUMS: tl.constexpr = sums_of(rows_ptr.dtype.element_ty)
    tile = tl.program_id(0) // tiles_n
    i = tile % tiles_m * BM + tl.arange(0, BM)
    o = (tile // tiles_m).to(tl.int64)
    split = tl.program_id(1)
    j = tl.program_id(0) % tiles_n * BN + tl.arange(0, BN)
    known = i < rows
    live = j < columns
    acc = tl.zeros((BM, BN), SUMS)
    for start in range(split * BK, pixels, splits * BK):
        site = start + tl.arange(0, BK)
        inside = site < pixels
        wide = site.to(tl.int64)
        row = tl.load(
            rows_ptr + wide[:, None] * stride + i[None, :], mask=inside[:, None] & (i < stride)[None, :], other=0.0
        )
        if ONES:
            at = j.to(tl.int64)[None, :] * pixels + site[:, None]
            made = tl.load(factor_ptr + at, mask=inside[:, None] & live[None, :], other=0.0)
        else:
            factor = tl.load(factor_ptr + o * pixels + site, mask=inside, other=0.0)
            h = tl.load(h_ptr + wide[:, None] * rank + j[None, :], mask=inside[:, None] & live[None, :], other=0.0)
            made = factor[:, None] * h.to(SUMS)
        if WIDE:
            row = row.to(SUMS)
        else:
            made = cast(made, rows_ptr.dtype.element_ty)
        acc = matmul(tl.trans(row), made, acc, PRECISION)
    if ONES:
        at = (split.to(tl.int64) * rows + i)[:, None] * columns + j[None, :]
    else:
        at = ((split.to(tl.int64) * rows + i) * outputs + o)[:, None] * columns + j[None, :]
    tl.store(out_ptr + at, acc, mask=known[:, None] & live[None, :])


def upstream(call: Call, grad: Tensor, saved: Outputs) -> tuple[Tensor, Tensor]:
    """of_u and of_w ``[O, N·OH·OW]``."""
    of_u, of_w = torch.empty_like(saved.norm), torch.empty_like(saved.norm)
    launch(
        alignment_upstream_kernel, (cdiv(call.pixels, tiles.VALUES) * call.outputs,),
        grad, saved.norm, saved.l, of_u, of_w, call.pixels, call.size[0] * call.size[1], call.outputs,
        NORM=call.spec.norm, BN=tiles.VALUES,
    )  # fmt: skip
    return of_u, of_w


def du(call: Call, of_u: Tensor, norm: Tensor | None, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The gradients of the patches ``[T·N, P, OH·OW]``; with ``norm``, ``of_u`` is the gradient at y."""
    plane, sites = call.size[0] * call.size[1], of_u.numel() // call.outputs
    tile = tiles.du(call, sites)
    tiles_p = cdiv(call.patch, tile.n)
    found = torch.empty((sites // plane, call.patch, plane), dtype=call.sums, device=h.device)
    launch(
        alignment_du_kernel, (cdiv(sites, tile.m) * tiles_p,), of_u, norm, h, weight, bias, found,
        sites, call.pixels, plane, call.patch, call.outputs, call.rank, tiles_p,
        NORM=call.spec.norm, WHOLE=call.rank <= tile.k, PRECISION=precision(call),
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return found


def patches(call: Call, x: Tensor) -> Tensor:
    """The patches ``[N·OH·OW, P]`` of x, and zeros behind each, so that rows begin at whole vectors."""
    stride, (m, n) = tiles.patch_stride(call), tiles.patches(call)
    tiles_p = cdiv(stride, n)
    u = x.new_empty((call.pixels, stride))
    launch(
        alignment_patches_kernel, (cdiv(call.pixels, m) * tiles_p,), x, u,
        call.pixels, *call.x_shape[1:], *call.size, stride, tiles_p, **window(call), BM=m, BN=n,
    )  # fmt: skip
    return u


def wide_weight(call: Call, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight of each output, ``[O, P, R]``, whose last column of R + 1 is the bias where there is one."""
    columns = [weight.view(call.patch, call.outputs, call.rank)]
    if bias is not None:
        columns.append(bias.view(call.patch, call.outputs, 1))
    return torch.cat([t.to(call.sums) for t in columns], 2).transpose(0, 1)


def dh(call: Call, of_u: Tensor, of_w: Tensor, u: Tensor, h: Tensor, weight: Tensor, made: Tensor) -> Tensor:
    """The gradient of h, ``[N·OH·OW, R]``; ``made`` is the :func:`wide_weight`."""
    gram, *of_bias = (made[..., : call.rank].mT @ made).split((call.rank, made.shape[2] - call.rank), 2)
    gram = gram.to(torch.bfloat16 if call.dtype == torch.bfloat16 else call.sums).contiguous()
    with_bias = made.shape[2] > call.rank
    tile = tiles.dh(call)
    tiles_r = cdiv(call.rank, tile.n)
    programs = cdiv(call.pixels, tile.m) * tiles_r
    splits = tiles.splits(programs, call.outputs)
    parts = torch.empty((splits, *h.shape), dtype=call.sums, device=h.device)
    launch(
        alignment_dh_kernel, (programs, splits),
        of_u, of_w, u, h, weight, gram, of_bias[0].contiguous() if with_bias else None, parts,
        call.pixels, call.patch, u.shape[1], call.outputs, call.rank, tiles_r, splits,
        PRECISION=precision(call), WIDE=wide_precision(call),
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return added(parts)


def dweight(
    call: Call, of_u: Tensor, of_w: Tensor, u: Tensor, h: Tensor, made: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the weight ``[P·O, R]`` and, ``with_bias``, of the bias ``[P·O]``."""
    found, gram = _sums(call, of_u, u, call.patch, h), _sums(call, of_w, h, call.rank, h)
    dbias = None
    if made.shape[2] > call.rank:
        of_h = _sums(call, of_w, h, call.rank, None)  # [R, O]
        gram = torch.cat([gram, of_h.mT.unsqueeze(0)])
        if with_bias:
            of_h = torch.cat([of_h, of_w.sum(1).unsqueeze(0)])
            dbias = _sums(call, of_u, u, call.patch, None).mT.unsqueeze(2).baddbmm(made, of_h.mT.unsqueeze(2))
            dbias = dbias.transpose(0, 1).flatten()
    found.transpose(0, 1).baddbmm_(made, gram.transpose(0, 1))
    return found.flatten(0, 1), dbias


def _sums(call: Call, factor: Tensor, rows: Tensor, count: int, h: Tensor | None) -> Tensor:
    """Σ_pixels row · factor · h, ``[count, O, R]``, or without h ``[count, O]``."""
    outputs, columns = call.outputs, call.outputs if h is None else call.rank
    tile, others = tiles.dweight(call, count, columns), 1 if h is None else outputs
    tiles_m, tiles_n = cdiv(count, tile.m), cdiv(columns, tile.n)
    programs = others * tiles_m * tiles_n
    splits = tiles.splits(programs, cdiv(call.pixels, 4 * tile.k))
    shape = (splits, count, outputs) if h is None else (splits, count, outputs, columns)
    parts = torch.empty(shape, dtype=call.sums, device=rows.device)
    launch(
        alignment_dweight_kernel, (programs, splits), factor, rows, h, parts,
        call.pixels, count, rows.shape[1], outputs, call.rank, columns, tiles_m, tiles_n, splits,
        ONES=h is None, WIDE=call.dtype != torch.bfloat16, PRECISION=wide_precision(call),
        BM=tile.m, BN=tile.n, BK=tile.k, warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return added(parts)


def added(parts: Tensor) -> Tensor:
    """The sum of parts, in an order that is always the same."""
    return parts[0] if len(parts) == 1 else parts.sum(0)
