"""The scale |cos|^(b-1) for a convolution by the vendor, forward and backward.

A row is one group of one pixel: y [N, OH, OW, G·OG] is a matrix [N·OH·OW·G, OG], and n has one value per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import safe_inverse, sums_of, tile_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from .arguments import formula, image, row_tile
from .formula import exponent, partial_b, partials, restored, root_gradient, transform


@triton.jit
def scale_fwd_kernel(
    z_ptr, alpha_ptr, bias_ptr, n_ptr, b_ptr, y_ptr, l_ptr, winner_ptr, rows, OG, b_minus_1, cos_eps,
    G: tl.constexpr, MAX_OUT: tl.constexpr, POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr,
    ALPHA: tl.constexpr, BIAS: tl.constexpr, SAVE_L: tl.constexpr, EXACT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y = transform(max(alpha z + bias), n): z [rows, OG·MAX_OUT], y, l, winner [rows, OG], n [rows].

    Source: B-cos Networks, eq. 3.
    """
    SUMS: tl.constexpr = sums_of(z_ptr.dtype.element_ty)
    row, column = tile_of(rows, BM, BN)
    inside = (row < rows)[:, None] & (column < OG)[None, :]
    wide = row.to(tl.int64)[:, None]
    best = tl.zeros((BM, BN), SUMS)
    winner = tl.zeros((BM, BN), tl.int32)
    for which in range(MAX_OUT):
        k = column * MAX_OUT + which
        l = tl.load(z_ptr + wide * (OG * MAX_OUT) + k[None, :], mask=inside, other=0.0).to(SUMS)  # noqa: E741
        filters = (row % G * (OG * MAX_OUT))[:, None] + k[None, :]
        if ALPHA:
            l *= tl.load(alpha_ptr + filters, mask=inside, other=0.0)  # noqa: E741
        if BIAS:
            l += tl.load(bias_ptr + filters, mask=inside, other=0.0).to(SUMS)  # noqa: E741
        replaces = (which == 0) | (((l > best) | (l != l)) & (best == best))
        best = tl.where(replaces, l, best)
        winner = tl.where(replaces, which, winner)
    inv_n = best
    if POWER != 1:
        inv_n = safe_inverse(tl.load(n_ptr + row, mask=row < rows, other=1.0), EXACT)[:, None]
    b_minus_1, cos_eps = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, SUMS)
    y = transform(best, inv_n, b_minus_1, cos_eps, POWER, EXACT)
    at = wide * OG + column[None, :]
    tl.store(y_ptr + at, cast(y, y_ptr.dtype.element_ty), mask=inside)
    if SAVE_L:
        tl.store(l_ptr + at, cast(best, l_ptr.dtype.element_ty), mask=inside)
    if MAX_OUT > 1:
        tl.store(winner_ptr + at, winner.to(tl.uint8), mask=inside)


@triton.jit
def scale_bwd_kernel(
    grad_ptr, v_ptr, winner_ptr, n_ptr, alpha_ptr, b_ptr, dl_ptr, dn_ptr, map_ptr, u_ptr, t_ptr, db_ptr,
    rows, scales, OG, b_minus_1, cos_eps, eps_outside,
    G: tl.constexpr, MAX_OUT: tl.constexpr, POWER: tl.constexpr, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr,
    ALPHA: tl.constexpr, FROZEN: tl.constexpr, SAVED_L: tl.constexpr, JOINS: tl.constexpr, WITH_DB: tl.constexpr,
    DIVIDES_X: tl.constexpr, EXACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """u = ∂L/∂z [rows, OG·MAX_OUT], t = ∂L/∂n · dn/dx ÷ x [rows] and the program's part of ∂L/∂b.

    grad is [rows, OG]; winner and v (l with ``SAVED_L``, else y) are [scales, OG], and n is [scales]. They are those of
    ``scales`` rows, of which each has ``rows // scales`` gradients. With ``FROZEN`` s is a constant. With
    ``JOINS`` the gradients dl [rows, OG] and dn [rows] of a second derivative are added to those at l and n. t is
    not written where it would be 0; with ``DIVIDES_X`` it is ∂L/∂n. map [4, G·OG], which may be None where v is y, is
    what grad still has to pass: grad · map[0] + (y − map[2]) · map[1] + map[3].
    """
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    known = row < rows
    wide = row.to(tl.int64)[:, None]
    scaled = row % scales
    b_minus_1, cos_eps = exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B, EXACT_TWO, SUMS)
    n = tl.zeros((BM,), SUMS)
    if POWER != 1:
        n = tl.load(n_ptr + scaled, mask=known, other=1.0)
    inv_n = safe_inverse(n, EXACT)[:, None]
    total = tl.zeros((BM,), SUMS)
    db = tl.zeros((BM,), SUMS)
    for start in range(0, OG, BN):
        column = start + tl.arange(0, BN)
        inside = known[:, None] & (column < OG)[None, :]
        at = wide * OG + column[None, :]
        held = scaled.to(tl.int64)[:, None] * OG + column[None, :]
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
        v = tl.zeros((BM, BN), SUMS)
        if POWER != 1:
            v = restored(tl.load(v_ptr + held, mask=inside, other=0.0).to(SUMS), inv_n, POWER, SAVED_L)
        if map_ptr is not None:
            output = map_ptr + (row % G * OG)[:, None] + column[None, :]
            of_grad = tl.load(output, mask=inside, other=0.0)
            of_y = tl.load(output + G * OG, mask=inside, other=0.0)
            from_mean = v - tl.load(output + 2 * G * OG, mask=inside, other=0.0)
            grad = grad * of_grad + from_mean * of_y + tl.load(output + 3 * G * OG, mask=inside, other=0.0)
        dl, dn = partials(v, inv_n, b_minus_1, cos_eps, POWER, FROZEN, EXACT)
        if not FROZEN:
            total += tl.sum(grad * dn, axis=1)
        if WITH_DB:
            db += tl.sum(grad * partial_b(v, inv_n, b_minus_1, cos_eps, EXACT), axis=1)
        if MAX_OUT > 1:
            winner = tl.load(winner_ptr + held, mask=inside, other=0)
        at_l = grad * dl
        if JOINS:
            at_l += tl.load(dl_ptr + at, mask=inside, other=0.0).to(SUMS)
        for which in range(MAX_OUT):
            k = column * MAX_OUT + which
            u = at_l
            if MAX_OUT > 1:
                u = tl.where(winner == which, u, 0.0)
            if ALPHA:
                filters = (row % G * (OG * MAX_OUT))[:, None] + k[None, :]
                u *= tl.load(alpha_ptr + filters, mask=inside, other=0.0)
            tl.store(u_ptr + wide * (OG * MAX_OUT) + k[None, :], cast(u, u_ptr.dtype.element_ty), mask=inside)
    if JOINS:
        total += tl.load(dn_ptr + row, mask=known, other=0.0)
    if POWER != 1 and (JOINS or not FROZEN):
        if not DIVIDES_X:
            total *= root_gradient(n, eps_outside, EXACT)
        tl.store(t_ptr + row, total, mask=known)
    if WITH_DB:
        tl.store(db_ptr + tl.program_id(0), tl.sum(db, axis=0))


def forward(call: Call, z: Tensor, weights, bias, n, b, out) -> None:
    """Writes y, l and winner into ``out``, from z ``[N, F, OH, OW]``."""
    m, columns = row_tile(call, call.group_outputs)
    rows = call.pixels * call.groups
    launch(
        scale_fwd_kernel, (cdiv(rows, m) * cdiv(call.group_outputs, columns),),
        z, weights.alpha, bias, n, b, out.y, out.l, out.winner, rows, call.group_outputs, call.b_minus_1, call.cos_eps,
        G=call.groups, MAX_OUT=call.max_out, **formula(call), ALPHA=weights.alpha is not None, BIAS=bias is not None,
        SAVE_L=call.saves_linear, BM=m, BN=columns,
    )  # fmt: skip


def backward(
    call: Call, grad: Tensor, v: Tensor | None, winner, n, weights, b, frozen: bool, with_db: bool,
    joined: tuple = (None, None), gradient_map: Tensor | None = None,
):  # fmt: skip
    """u ``[T·N, F, OH, OW]``, t ``[N, G, OH, OW]`` and db; v is l where that is saved, else y.

    T is the number of gradients of each image in ``grad``, which is 1 unless ``frozen``.

    ``joined`` is what a second derivative adds to the gradients of n and l, and ``gradient_map`` what ``grad`` still
    has to pass. t is None if ``frozen`` without the former, and db is None unless ``with_db``.
    """
    dn, dl = joined
    m, columns = row_tile(call, call.group_outputs)
    scales = call.pixels * call.groups
    given = call.of_rows(len(grad) // call.batch)
    rows = given.pixels * call.groups
    programs = cdiv(rows, m)
    u = image(given, call.filters, call.dtype, grad)
    joins = dn is not None
    t = None if frozen and not joins else image(call, call.groups, call.sums, grad)
    db = torch.empty(programs, dtype=call.sums, device=grad.device) if with_db else None
    launch(
        scale_bwd_kernel, (programs,),
        grad, v, winner, n, weights.alpha, b, dl, dn, gradient_map, u, t, db,
        rows, scales, call.group_outputs, call.b_minus_1, call.cos_eps, call.norm_eps[1],
        G=call.groups, MAX_OUT=call.max_out, **formula(call), ALPHA=weights.alpha is not None, FROZEN=frozen,
        SAVED_L=call.saves_linear, JOINS=joins, WITH_DB=with_db, DIVIDES_X=call.divides_x, BM=m, BN=columns,
    )  # fmt: skip
    return u, t, None if db is None else db.sum()
