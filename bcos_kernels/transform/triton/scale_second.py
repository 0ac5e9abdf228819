"""The second derivative of the scale for products by the vendor: that of ⟨v, dx⟩ = Σ grad·(P·p + Q·r·m).

p = v ⋆ ŵ at the winners, m = Σ x·v over a patch, P and Q are the partials of y, and r = dn/dx ÷ x. Rows are those of
``scale.py``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...gpu.functions import safe_inverse, sums_of
from ...gpu.launch import launch
from ...gpu.rounding import cast
from ...gpu.sizes import cdiv
from ..call import Call
from .arguments import image, row_tile
from .formula import curvature, partials, restored, root_gradient, signed_cosine

VALUES = 1024  # of a tile, beside which the registers hold five sums and factors of each of its rows


@triton.jit
def scale_second_kernel(
    grad_ptr, v_ptr, winner_ptr, z_ptr, n_ptr, root_ptr, m_ptr, alpha_ptr, dgrad_ptr, u_ptr, dl_ptr, dn_ptr, t_ptr,
    rows, OG, b_minus_1, cos_eps, eps_outside,
    G: tl.constexpr, MAX_OUT: tl.constexpr, POWER: tl.constexpr, ALPHA: tl.constexpr, FROZEN: tl.constexpr,
    SAVED_L: tl.constexpr, ATTACHED: tl.constexpr, EXACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dgrad [rows, OG] and u = grad·P·alpha at the winners [rows, OG·MAX_OUT], from z = v ⋆ w [rows, OG·MAX_OUT].

    Where the scale is ``ATTACHED`` also the gradients dl [rows, OG] and dn [rows], and t = r·Σ grad·Q [rows].
    grad, winner and v (l with ``SAVED_L``, else y) are [rows, OG]; n, root and m are [rows]. With ``FROZEN`` the scale
    was a constant of dx, and m is not read. root, n without eps_outside, may be None: it is then formed of n.
    """
    SUMS: tl.constexpr = sums_of(grad_ptr.dtype.element_ty)
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    known = row < rows
    wide = row.to(tl.int64)[:, None]
    n = tl.zeros((BM,), SUMS)
    if POWER != 1:
        n = tl.load(n_ptr + row, mask=known, other=1.0)
    inv_n = safe_inverse(n, EXACT)[:, None]
    if root_ptr is None:
        r = root_gradient(n, eps_outside, EXACT)
    else:
        r = root_gradient(tl.load(root_ptr + row, mask=known, other=1.0), 0.0, EXACT)
    rm = tl.zeros((BM,), SUMS)
    if not FROZEN:
        rm = r * tl.load(m_ptr + row, mask=known, other=0.0)
    sum_dn = tl.zeros((BM,), SUMS)
    sum_t = tl.zeros((BM,), SUMS)
    for start in range(0, OG, BN):
        column = start + tl.arange(0, BN)
        inside = known[:, None] & (column < OG)[None, :]
        at = wide * OG + column[None, :]
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(SUMS)
        v = tl.zeros((BM, BN), SUMS)
        if POWER != 1:
            v = restored(tl.load(v_ptr + at, mask=inside, other=0.0).to(SUMS), inv_n, POWER, SAVED_L)
        winner = tl.zeros((BM, BN), tl.int32)
        if MAX_OUT > 1:
            winner = tl.load(winner_ptr + at, mask=inside, other=0).to(tl.int32)
        won = column[None, :] * MAX_OUT + winner
        p = tl.load(z_ptr + wide * (OG * MAX_OUT) + won, mask=inside, other=0.0).to(SUMS)
        if ALPHA:
            p *= tl.load(alpha_ptr + (row % G * (OG * MAX_OUT))[:, None] + won, mask=inside, other=0.0)
        by_l, by_n = partials(v, inv_n, b_minus_1, cos_eps, POWER, FROZEN, EXACT)
        dgrad = by_l * p
        if not FROZEN:
            dgrad += by_n * rm[:, None]
            sum_t += tl.sum(grad * by_n, axis=1)
        tl.store(dgrad_ptr + at, cast(dgrad, dgrad_ptr.dtype.element_ty), mask=inside)
        if ATTACHED:
            cosine = signed_cosine(v, inv_n, POWER, EXACT)
            slope = curvature(cosine, inv_n, b_minus_1, cos_eps, POWER, FROZEN, EXACT)
            dl = grad * slope * (p - cosine * rm[:, None])
            sum_dn += tl.sum(cosine * dl, axis=1)
            tl.store(dl_ptr + at, cast(dl, dl_ptr.dtype.element_ty), mask=inside)
        for which in range(MAX_OUT):
            k = column * MAX_OUT + which
            u = grad * by_l
            if MAX_OUT > 1:
                u = tl.where(winner == which, u, 0.0)
            if ALPHA:
                filters = (row % G * (OG * MAX_OUT))[:, None] + k[None, :]
                u *= tl.load(alpha_ptr + filters, mask=inside, other=0.0)
            tl.store(u_ptr + wide * (OG * MAX_OUT) + k[None, :], cast(u, u_ptr.dtype.element_ty), mask=inside)
    if ATTACHED:
        t = r * sum_t
        tl.store(dn_ptr + row, -sum_dn - rm * t, mask=known)
        tl.store(t_ptr + row, t, mask=known)


def second(call: Call, grad: Tensor, v: Tensor | None, winner, z: Tensor, n, root, m, weights, attached: bool):
    """dgrad, u ``[N, F, OH, OW]``, dn, dl and t; the last three are None unless ``attached``.

    v is l where that is saved, else y. root may be None. m is None where the scale was a constant of dx.
    """
    tile = row_tile(call, call.group_outputs, VALUES)
    rows = call.pixels * call.groups
    u = image(call, call.filters, call.dtype, grad)
    dgrad = torch.empty_like(grad)
    dn = dl = t = None
    if attached:
        dl = torch.empty_like(grad)
        dn, t = (image(call, call.groups, call.sums, grad) for _ in range(2))
    launch(
        scale_second_kernel, (cdiv(rows, tile[0]),),
        grad, v, winner, z, n, root, m, weights.alpha, dgrad, u, dl, dn, t,
        rows, call.group_outputs, call.b_minus_1, call.cos_eps, call.norm_eps[1],
        G=call.groups, MAX_OUT=call.max_out, POWER=call.power, ALPHA=weights.alpha is not None, FROZEN=m is None,
        SAVED_L=call.saves_linear, ATTACHED=attached, EXACT=call.exact, BM=tile[0], BN=tile[1],
    )  # fmt: skip
    return dgrad, u, dn, dl, t
