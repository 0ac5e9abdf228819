"""Starts the kernels of one call, forward or backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ...gpu.launch import on_device_of
from .. import rows
from ..call import Call
from ..spec import Inputs, Outputs
from . import apply, positions, statistics, sums
from .arguments import as_given, dense, is_alone, owner, vector

__all__ = ["backward", "forward", "gradient_map", "second"]


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y has the strides that torch gives to a tensor like x."""
    given = inputs.x
    if given.numel() == 0:
        y = torch.empty_like(given, dtype=call.spec.out_dtype)
        return y, *(given.new_full(call.statistics_shape, torch.nan, dtype=call.sums) for _ in range(2))
    with on_device_of(given):
        x = dense(given, call)
        gamma, beta, mean, var = map(vector, inputs[1:])
        y = torch.empty_like(x, dtype=call.spec.out_dtype)
        saved = given.new_empty(0, dtype=call.sums), given.new_empty(0, dtype=call.sums)
        if call.spec.over == "position":
            saved = positions.forward(call, x, gamma, beta, y)
        else:
            if var is None:
                saved = mean, var = statistics.of(call, x)
            apply.forward(call, x, gamma, beta, mean, var, y)
        return as_given(y, given), *saved


def backward(
    grad: Tensor | None,
    inputs: Inputs,
    saved: Outputs,
    call: Call,
    tile: None,
    frozen: bool,
    needs,
    joined: tuple = (None,),
    as_map: bool = False,
) -> tuple:
    """The gradients of x, weight and bias; one not needed is None. ``frozen`` makes the variance a constant.

    ``joined`` holds the gradient of var that :func:`second` returned; beside it ``grad`` may be None. Several gradients
    of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``. With ``as_map``
    the map of dx stands in its place: see ``Candidate.gradient_map``.
    """
    if grad is None:
        grad = torch.zeros_like(inputs.x, dtype=call.spec.out_dtype)
    inputs, saved, call = rows.as_images(grad, inputs, saved, call)
    given, weight, bias, mean, var = inputs
    needs_x, *others = needs[:3]
    if given.numel() == 0:
        likes = zip((given, weight, bias), needs, strict=False)
        return *(torch.zeros_like(t) if need and t is not None else None for t, need in likes), None, None
    with on_device_of(given):
        x, grad, gamma = dense(given, call), dense(grad, call), vector(weight)
        mean, var = map(vector, (mean, var) if call.given else saved[1:])
        dvar = vector(joined[0])
        dx, frozen = torch.empty_like(x) if needs_x and not as_map else None, frozen or call.given
        if call.spec.over == "position":
            found = positions.backward(call, grad, x, gamma, mean, var, dvar, frozen, dx, any(others))
        else:
            dx = x.new_empty(4, call.channels, dtype=call.sums) if as_map else dx
            found = _backward_of_others(grad, x, gamma, mean, var, dvar, call, frozen, any(others), dx, as_map)
        if dx is not None and is_alone(call):
            dx.mul_(0.0)  # both terms cancel, but the compiler may round one and add the other's product unrounded
        dgamma, dbeta = (
            t.to(like.dtype) if need and t is not None and like is not None else None
            for t, like, need in zip(found or (None, None), (weight, bias), others, strict=True)
        )
    return dx if dx is None or as_map else as_given(dx, given), dgamma, dbeta, None, None


def gradient_map(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, needs, joined) -> tuple:
    """The gradients with the map of dx in its place."""
    return backward(grad, inputs, saved, call, None, frozen, needs, joined, as_map=True)


def second(v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted) -> tuple:
    """The gradients of ⟨v, dx⟩ in an explanation mode: those of grad, the inputs and the variance of the forward.

    That of the weight is None unless it is ``wanted``, and that of the variance is left out where it is a constant.
    """
    given, weight = inputs.x, inputs.weight if wanted[2] else None
    if given.numel() == 0:
        zeros = torch.zeros_like(grad), None, None if weight is None else torch.zeros_like(weight), None, None, None
        joined = [torch.zeros(shape, dtype=dtype, device=v.device) for shape, dtype in call.intermediates]
        return *zeros, *joined
    with on_device_of(given):
        v, grad, gamma = dense(v, call), dense(grad, call), vector(inputs.weight)
        var, summed = vector(inputs.var if call.given else saved.var), weight is not None
        dgrad = torch.empty_like(v, dtype=call.spec.out_dtype)
        if call.spec.over == "position":
            dvar = torch.empty_like(saved.var, memory_format=torch.contiguous_format) if call.intermediates else None
            dgamma = positions.second(call, grad, v, gamma, var, dvar, dgrad, summed)
        else:
            dgamma, dvar = _second_of_others(grad, v, gamma, var, call, summed, dgrad)
    dweight = None if weight is None else dgamma.to(weight.dtype)
    return as_given(dgrad, given), None, dweight, None, None, None, *(() if dvar is None else (dvar,))


def _second_of_others(grad: Tensor, v: Tensor, gamma, var, call: Call, summed: bool, dgrad: Tensor) -> tuple:
    """Writes dgrad; dgamma and the gradient of the variance."""
    spec = call.spec
    mean = statistics.of(call, v)[0] if spec.centered and not call.given else None
    apply.forward(call, v, gamma, None, mean, var, dgrad)
    dgamma = dvar = None
    if summed or call.intermediates:
        channels = sums.of_channels(call, grad, v, mean, var, True)
        if summed:
            dgamma = (sums.folded(call, channels) if spec.over == "group" else channels)[0]
        if call.intermediates:
            products, _ = sums.of_groups(call, channels, gamma)
            assert products is not None
            dvar = products.view_as(var) / torch.rsub(var, -2 * spec.eps, alpha=2)  # the products have one r already
    return dgamma, dvar


def _backward_of_others(
    grad: Tensor, x: Tensor, gamma, mean, var, dvar, call: Call, frozen: bool, summed: bool, dx: Tensor | None,
    as_map: bool,
) -> sums.Sums | None:  # fmt: skip
    """Writes dx, or its map, unless it is None; with ``summed`` returns the sums of each channel."""
    spec, shared = call.spec, owner(call)[1]
    moves = spec.centered and not call.given
    channels: sums.Sums | None = None
    if summed or (dx is not None and (moves or not frozen)):
        channels = sums.of_channels(call, grad, x, mean, var, summed or not frozen)
    if dx is not None:
        products = grads = None
        if channels is not None:
            products, grads = sums.of_groups(call, channels, gamma) if shared > 1 or spec.over == "group" else channels
        of = gamma, mean, var, dvar, None if frozen else products, grads if moves else None
        apply.gradient_map(call, *of, dx) if as_map else apply.backward(call, grad, x, *of, dx)
    if channels is not None and summed and spec.over == "group":
        return sums.folded(call, channels)
    return channels
