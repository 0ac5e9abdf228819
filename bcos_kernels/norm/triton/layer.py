"""Starts the kernels of one call, forward or backward."""

from __future__ import annotations

import torch
from torch import Tensor

from ...gpu.launch import on_device_of
from ..call import Call
from ..spec import Inputs, Outputs
from . import apply, positions, statistics, sums
from .arguments import as_given, dense, owner, vector

__all__ = ["backward", "forward"]


def forward(inputs: Inputs, call: Call) -> tuple[Tensor, ...]:
    """The outputs; y has the strides that torch gives to a tensor like x."""
    given = inputs.x
    if given.numel() == 0:
        y = torch.empty_like(given, dtype=call.spec.out_dtype)
        return y, *(given.new_full(call.statistics_shape, torch.nan, dtype=torch.float32) for _ in range(2))
    with on_device_of(given):
        x = dense(given, call)
        gamma, beta, mean, var = map(vector, inputs[1:])
        y = torch.empty_like(x, dtype=call.spec.out_dtype)
        saved = given.new_empty(0, dtype=torch.float32), given.new_empty(0, dtype=torch.float32)
        if call.spec.over == "position":
            saved = positions.forward(call, x, gamma, beta, y)
        else:
            if var is None:
                saved = mean, var = statistics.of(call, x)
            apply.forward(call, x, gamma, beta, mean, var, y)
        return as_given(y, given), *saved


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, needs) -> tuple:
    """The gradients of x, weight and bias; one not needed is None. ``frozen`` makes the variance a constant."""
    given, weight, bias, mean, var = inputs
    needs_x, *others = needs[:3]
    if given.numel() == 0:
        likes = zip((given, weight, bias), needs, strict=False)
        return *(torch.zeros_like(t) if need and t is not None else None for t, need in likes), None, None
    with on_device_of(given):
        x, grad, gamma = dense(given, call), dense(grad, call), vector(weight)
        mean, var = (vector(mean), vector(var)) if call.given else saved[1:]
        dx, frozen = torch.empty_like(x) if needs_x else None, frozen or call.given
        if call.spec.over == "position":
            found = positions.backward(call, grad, x, gamma, mean, var, frozen, dx, any(others))
        else:
            found = _backward_of_others(grad, x, gamma, mean, var, call, frozen, any(others), dx)
        dgamma, dbeta = (
            t.to(like.dtype) if need and t is not None and like is not None else None
            for t, like, need in zip(found or (None, None), (weight, bias), others, strict=True)
        )
    return None if dx is None else as_given(dx, given), dgamma, dbeta, None, None


def _backward_of_others(
    grad: Tensor, x: Tensor, gamma, mean, var, call: Call, frozen: bool, summed: bool, dx: Tensor | None
) -> sums.Sums | None:
    """Writes dx unless it is None; with ``summed`` returns the sums of each channel."""
    spec, shared = call.spec, owner(call)[1]
    moves = spec.centered and not call.given
    channels: sums.Sums | None = None
    if summed or (dx is not None and (moves or not frozen)):
        channels = sums.of_channels(call, grad, x, mean, var, summed or not frozen)
    if dx is not None:
        products = grads = None
        if channels is not None:
            products, grads = sums.of_groups(call, channels, gamma) if shared > 1 or spec.over == "group" else channels
        apply.backward(
            call, grad, x, gamma, mean, var, None if frozen else products, grads if moves else None, dx
        )  # fmt: skip
    if channels is not None and summed and spec.over == "group":
        return sums.folded(channels)
    return channels
