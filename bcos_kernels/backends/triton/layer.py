"""What is started for one call: the weights made ready, then the chosen candidate, forward or backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu.choice import Choice
from ..gpu.problem import Problem
from . import depthwise, implicit_gemm, implicit_gemm_gradients, patch_norm, plan, scale, vendor, weight_norm
from .launch import channels_last, image
from .weight_norm import Weights

__all__ = ["Saved", "backward", "forward"]


class Saved(NamedTuple):
    """What the forward left: y where b = 2, n, l for the general b, the winning filters; else None or empty."""

    y: Tensor | None
    n: Tensor
    l: Tensor  # noqa: E741
    winner: Tensor


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> Saved:
    """(y, n, l, winner) of x ``[N, C, H, W]``, all channels_last; empty where the problem has none."""
    x = channels_last(x)
    out = Saved(
        image(p, p.outputs, p.out_dtype, x),
        image(p, p.groups if p.saves_norm else 0, torch.float32, x),
        image(p, p.outputs if p.power == 0 else 0, p.out_dtype, x),
        image(p, p.outputs if p.max_out > 1 else 0, torch.uint8, x),
    )
    if p.pixels == 0:
        return out
    weights = weight_norm.prepare(p, weight_norm.dense(weight))
    bias = None if bias is None else bias.contiguous()
    if choice.candidate == "vendor":
        z = vendor.product(p, x, weights.operand)
        scale.forward(p, z, weights, bias, patch_norm.norm(p, x, out.n), b, out)
    elif p.depthwise:
        depthwise.forward(p, x, weights, bias, b, out)
    else:
        implicit_gemm.forward(p, x, weights, bias, b, out, choice.tile or plan.tiles(p, "forward", "one-pass")[0])
    return out


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved: Saved,
    explain: bool, needs,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    if p.in_pixels == 0 or p.pixels == 0:
        likes = (x, weight, weight.new_empty(p.filters), b)
        return tuple(torch.zeros_like(like) if need else None for like, need in zip(likes, needs, strict=True))
    saved = Saved(*(None if t is None else channels_last(t) for t in saved))
    weight = weight_norm.dense(weight)
    weights = weight_norm.prepare(p, weight)
    if choice.candidate == "vendor":
        gradients = _vendor
    elif p.depthwise and choice.candidate == "one-pass" and not needs[3]:
        gradients = _depthwise
    else:
        gradients = _implicit_gemm
    dx, partial, dbias, db = gradients(
        p, channels_last(grad), channels_last(x), weights, b, saved, explain or p.power == 1, needs, choice
    )
    dweight = weight_norm.gradient(p, partial, weight, weights) if needs[1] else None
    return dx, dweight, None if dbias is None else dbias.to(weight.dtype), None if db is None else db.to(b.dtype)


# Each returns dx, shares of the gradient of the products' operand, dbias and db. ``detached``: s is a constant.


def _vendor(p: Problem, grad, x, weights: Weights, b, saved: Saved, detached: bool, needs, choice: Choice):
    u, t, db = _semi(p, grad, x, weights, b, saved, detached, needs)
    dx, partial, dbias = vendor.gradients(p, u, x, weights.operand, needs)
    if needs[0] and not detached:
        patch_norm.add_gradient(p, dx, x, t)
    return dx, partial, dbias, db


def _depthwise(p: Problem, grad, x, weights: Weights, b, saved: Saved, detached: bool, needs, choice: Choice):
    dx = partial = dbias = None
    u, t = depthwise.backward(p, grad, x, weights, b, saved, detached)
    if needs[0]:
        dx = depthwise.dgrad(p, u, t, weights, x)
    if needs[1] or needs[2]:
        partial, dbias = depthwise.wgrad(p, u, x, needs[2])
    return dx, partial, dbias, None


def _implicit_gemm(p: Problem, grad, x, weights: Weights, b, saved: Saved, detached: bool, needs, choice: Choice):
    dx = partial = dbias = u = t = db = None
    if choice.candidate != "one-pass" or needs[3]:  # only the scale's own kernel forms db
        u, t, db = _semi(p, grad, x, weights, b, saved, detached, needs)
    upstream = implicit_gemm_gradients.Upstream(u, t, grad, saved.y, saved.n, detached)
    if needs[0]:
        tile = choice.tile or plan.tiles(p, "training", "semi" if p.depthwise else choice.candidate)[0]
        dx = implicit_gemm_gradients.dgrad(p, upstream, weights, x, tile)
    if needs[1] or needs[2]:
        partial, dbias = implicit_gemm_gradients.wgrad(p, upstream, weights, x, needs[2])
    return dx, partial, dbias, db


def _semi(p: Problem, grad, x, weights: Weights, b, saved: Saved, detached: bool, needs):
    """u, t and db of one kernel; the norm is formed again where it was not saved."""
    v = saved.l if p.power == 0 else saved.y
    n = saved.n if p.saves_norm else patch_norm.norm(p, x, saved.n)
    return scale.backward(p, grad, v, saved.winner, n, weights, b, detached, needs[3])
