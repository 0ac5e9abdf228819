"""Starts the kernels of one call, forward or backward: one prepares the weights, then a candidate's products run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.candidate import Tile
from ...core.formats import channels_last
from ...gpu.launch import on_device_of
from ..call import Call
from ..spec import Inputs, Outputs
from . import (
    depthwise,
    implicit_gemm,
    patch_norm,
    scale,
    scale_second,
    tiles,
    tma_matmul,
    tma_one_pass,
    tma_tiles,
    vendor,
    weight_norm,
)
from . import implicit_gemm_gradients as gradients
from .arguments import image
from .weight_norm import Weights

__all__ = ["backward", "forward", "second"]


def forward(candidate: str, inputs: Inputs, call: Call, tile: Tile | None) -> tuple[Tensor, ...]:
    """The outputs, by the candidate of this name; images are channels_last."""
    x, weight, bias, b = inputs
    with on_device_of(x):
        x = _image(x)
        out = Outputs(
            image(call, call.outputs, call.out_dtype, x),
            image(call, call.groups if call.saves_norm else 0, call.sums, x),
            image(call, call.outputs if call.saves_linear else 0, call.out_dtype, x),
            image(call, call.outputs if call.max_out > 1 else 0, torch.uint8, x),
        )
        if call.pixels > 0:
            weights = weight_norm.prepare(call, weight_norm.dense(_image(weight)))
            bias = None if bias is None else bias.contiguous()
            _FORWARDS[candidate](call, channels_last(x), weights, bias, b, out, tile)
    return tuple(map(_rows_of, out)) if call.is_linear else out


def backward(
    candidate: str,
    grad: Tensor,
    inputs: Inputs,
    saved: Outputs,
    call: Call,
    tile: Tile | None,
    frozen: bool,
    needs,
    joined: tuple = (),
    gradient_map: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db); a gradient not needed is None. ``frozen`` makes the scale a constant.

    ``joined`` holds the gradients of n and l that :func:`second` returned, and ``gradient_map`` what ``grad`` still has
    to pass, for candidates that take them.
    """
    x, weight, bias, b = inputs
    if call.in_pixels == 0 or call.pixels == 0:
        likes = (x, weight, weight.new_empty(call.filters), b)
        return tuple(
            torch.zeros_like(like) if need and like is not None else None
            for like, need in zip(likes, needs, strict=True)
        )
    with on_device_of(x):
        grad, x = channels_last(_image(grad)), channels_last(_image(x))
        saved, joined = _images(saved), tuple(channels_last(_image(t)) for t in joined)
        weight = weight_norm.dense(_image(weight))
        weights = weight_norm.prepare(call, weight)
        frozen = frozen or call.power == 1
        given: dict[str, Any] = {"joined": joined} if joined else {}
        if gradient_map is not None:
            given["gradient_map"] = gradient_map.contiguous()
        bias, products = None if bias is None else bias.contiguous(), _BACKWARDS[candidate]
        dx, partial, dbias, db = products(call, grad, x, weights, bias, b, saved, frozen, needs, tile, **given)
        dweight = weight_norm.gradient(call, partial, weight, weights) if needs[1] else None
        dbias = None if dbias is None else dbias.to(weight.dtype)
        db = None if db is None or b is None else db.to(b.dtype)
    return (_rows_of(dx), _rows_of(dweight), dbias, db) if call.is_linear else (dx, dweight, dbias, db)


def second(
    candidate: str, v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted
) -> tuple[Tensor | None, ...]:
    """The gradients of ⟨v, dx⟩, with products by the vendor, the only candidate: those of grad, x, weight, n and l.

    One without value, or not ``wanted`` of x and weight, is None; those of n and l are None where the scale is a
    constant of every derivative.
    """
    x, weight, *_ = inputs
    attached = call.power != 1 and not call.spec.detach
    if call.in_pixels == 0 or call.pixels == 0:
        zeros = (torch.zeros_like(grad), None, torch.zeros_like(weight) if wanted[1] else None)
        joined = (torch.zeros(shape, dtype=dtype, device=x.device) for shape, dtype in call.intermediates)
        return *zeros, *(joined if attached else (None, None))
    with on_device_of(x):
        v, grad, x, saved = *(channels_last(_image(t)) for t in (v, grad, x)), _images(saved)
        weight = weight_norm.dense(_image(weight))
        weights = weight_norm.prepare(call, weight)
        unfrozen = attached and not frozen
        value, n = _output_or_linear(call, saved), _norm(call, x, saved)
        root, m = (patch_norm.roots(call, x), patch_norm.products(call, x, v)) if unfrozen else (None, None)
        z = vendor.product(call, v, weights.operand)
        dgrad, u, dn, dl, t = scale_second.second(call, grad, value, saved.winner, z, n, root, m, weights, attached)
        dx = patch_norm.gradient(call, v, t) if unfrozen and wanted[0] else None
        dweight = None
        if wanted[1]:
            _, partial, _ = vendor.gradients(call, u, v, weights.operand, (False, True, False))
            dweight = weight_norm.gradient(call, partial, weight, weights)
    found = dgrad, dx, dweight, dn, dl
    return tuple(map(_rows_of, found)) if call.is_linear else found


def _images(saved: Outputs) -> Outputs:
    return Outputs(*(None if t is None else channels_last(_image(t)) for t in saved))


# ---- the products of the candidates: a forward writes into ``out``; a backward returns dx, partial sums of the
# gradient of the products' weights, dbias and db


def _vendor_forward(call: Call, x: Tensor, weights: Weights, bias, b, out: Outputs, tile: None) -> None:
    z = vendor.product(call, x, weights.operand)
    scale.forward(call, z, weights, bias, patch_norm.norm(call, x, out.n), b, out)


def _one_pass_forward(call: Call, x: Tensor, weights: Weights, bias, b, out: Outputs, tile: Tile | None) -> None:
    if call.depthwise:
        depthwise.forward(call, x, weights, bias, b, out)
    else:
        implicit_gemm.forward(call, x, weights, bias, b, out, tile or tiles.tiles(call, "forward", given=False)[0])


def _vendor_backward(call: Call, grad, x, weights: Weights, bias, b, saved, frozen: bool, needs, tile, **given):
    u, t, db = _scale(call, grad, x, weights, b, saved, frozen, needs, **given)
    dx, partial, dbias = vendor.gradients(call, u, x, weights.operand, needs)
    if needs[0] and t is not None:
        patch_norm.add_gradient(call, dx, x, t)
    return dx, partial, dbias, db


def _depthwise_backward(call: Call, grad, x, weights: Weights, b, saved: Outputs, frozen: bool, needs):
    dx = partial = dbias = None
    u, t = depthwise.backward(call, grad, x, weights, b, saved, frozen)
    if needs[0]:
        dx = depthwise.dgrad(call, u, t, weights, x)
    if needs[1] or needs[2]:
        partial, dbias = depthwise.wgrad(call, u, x, needs[2])
    return dx, partial, dbias, None


def _one_pass_backward(call: Call, grad, x, weights: Weights, bias, b, saved: Outputs, frozen: bool, needs, tile):
    if needs[3]:  # only the separate kernel of the scale forms db
        return _semi_backward(call, grad, x, weights, bias, b, saved, frozen, needs, tile)
    if call.depthwise:
        return _depthwise_backward(call, grad, x, weights, b, saved, frozen, needs)
    source = gradients.Source(None, None, grad, _output_or_linear(call, saved), saved.n, frozen)
    tile = tile or tiles.tiles(call, "training", given=False)[0]
    return *_products(call, source, x, weights, needs, tile), None


def _semi_backward(call: Call, grad, x, weights: Weights, bias, b, saved, frozen: bool, needs, tile, **given):
    u, t, db = _scale(call, grad, x, weights, b, saved, frozen, needs, **given)
    source = gradients.Source(u, t, grad, _output_or_linear(call, saved), saved.n, frozen)
    tile = tile or tiles.tiles(call, "training", given=True)[0]
    return *_products(call, source, x, weights, needs, tile), db


def _tma_forward(call: Call, x: Tensor, weights: Weights, bias, b, out: Outputs, tile: Tile | None) -> None:
    tma_matmul.forward(call, x, weights, bias, b, out, tile or tma_tiles.tiles(call, "forward")[0])


def _tma_backward(
    call: Call, grad, x, weights: Weights, bias, b, saved: Outputs, frozen: bool, needs, tile: Tile | None,
    gradient_map=None,
):  # fmt: skip
    v = _output_or_linear(call, saved)
    if frozen and not any(needs[1:]):
        tile = tile or tma_tiles.tiles(call, "explanation")[0]
        dx, _ = tma_matmul.dgrad(
            call, grad, v, saved.n, weights, bias, b, gradient_map, x, "explanation", True, False, tile
        )
        return dx, None, None, None
    tile = tma_tiles.training_tile(call, gradient_map is not None)  # the only one, for which a map leaves less memory
    return *tma_one_pass.gradients(call, grad, v, saved.n, weights, bias, gradient_map, x, frozen, needs, tile), None


def _tma_vendor_backward(
    call: Call, grad, x, weights: Weights, bias, b, saved: Outputs, frozen: bool, needs, tile: Tile | None,
    gradient_map=None,
):  # fmt: skip
    """One kernel forms dx and u = ∂L/∂z, and the vendor the gradient of the products' weights.

    Where dx is not needed, u alone is left to form, which a kernel of the scale does.
    """
    if not needs[0]:
        return _vendor_backward(call, grad, x, weights, bias, b, saved, frozen, needs, None, gradient_map=gradient_map)
    v = _output_or_linear(call, saved)
    tile = tile or tma_tiles.tiles_of_product(call, "training")[0]
    tile = tile if gradient_map is None else tma_tiles.beside_map(call, tile)
    with_u = needs[1] or needs[2]
    dx, u = tma_matmul.dgrad(
        call, grad, v, saved.n, weights, bias, b, gradient_map, x, "training", frozen, with_u, tile
    )
    if u is None:
        return dx, None, None, None
    _, partial, dbias = vendor.gradients(call, u, x, weights.operand, (False, *needs[1:]))
    return dx, partial, dbias, None


_FORWARDS: dict[str, Callable] = {"vendor": _vendor_forward, "one-pass": _one_pass_forward, "tma": _tma_forward}
_BACKWARDS: dict[str, Callable] = {
    "vendor": _vendor_backward, "one-pass": _one_pass_backward, "semi": _semi_backward, "tma": _tma_backward,
    "tma-vendor": _tma_vendor_backward,
}  # fmt: skip


def _products(call: Call, source: gradients.Source, x: Tensor, weights: Weights, needs, tile: Tile):
    dx = partial = dbias = None
    if needs[0]:
        dx = gradients.dgrad(call, source, weights, x, tile)
    if needs[1] or needs[2]:
        partial, dbias = gradients.wgrad(call, source, weights, x, needs[2])
    return dx, partial, dbias


def _scale(call: Call, grad, x, weights: Weights, b, saved: Outputs, frozen: bool, needs, **given):
    """u, t and db, formed by one kernel."""
    value, n = _output_or_linear(call, saved), _norm(call, x, saved)
    return scale.backward(call, grad, value, saved.winner, n, weights, b, frozen, needs[3], **given)


def _output_or_linear(call: Call, saved: Outputs) -> Tensor | None:
    """What the formula's derivatives are formed from: l where it is saved, else y."""
    return saved.l if call.saves_linear else saved.y


def _norm(call: Call, x: Tensor, saved: Outputs) -> Tensor | None:
    """n, formed again where it was not saved."""
    return saved.n if call.saves_norm else patch_norm.norm(call, x, saved.n)


# ---- linear layers as images of one pixel


def _image(t: Tensor) -> Tensor:
    """``[M, K]`` as ``[M, K, 1, 1]``."""
    return t.contiguous()[:, :, None, None] if t.dim() == 2 else t


def _rows_of(images):
    return images[:, :, 0, 0] if images is not None and images.dim() == 4 else images
