"""Starts the kernels of one call, forward or backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import without_autocast
from ...core.formats import memory_format
from ...gpu.launch import on_device_of
from ..call import Call
from ..spec import Inputs, Outputs
from . import forward as outputs
from . import gradients, signs
from .arguments import by_pixel

__all__ = ["backward", "forward"]


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    x = inputs.x
    y = x.new_empty((call.x_shape[0], call.outputs, *call.size))
    norm = torch.empty((call.outputs, call.pixels), dtype=call.sums, device=x.device)
    l = None if call.spec.detach else torch.empty_like(norm)  # noqa: E741
    if call.pixels:
        with on_device_of(x):
            outputs.forward(call, *_dense(inputs), y, norm, l)
    return y.contiguous(memory_format=memory_format(x)), norm, norm.new_empty(0) if l is None else l


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    """The gradients of the inputs; one not needed is None. Those of frozen dynamic weights are zeros.

    Several gradients of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``.
    """
    if not call.pixels or not len(grad):
        rows = len(grad) // len(inputs.x) if len(inputs.x) else 1
        zeros = (torch.zeros_like(t) if n and t is not None else None for t, n in zip(inputs, needs, strict=True))
        dx, *others = zeros
        return dx if dx is None else dx.repeat(rows, 1, 1, 1), *others
    training = any(needs[1:]) and not frozen
    spec = call.spec
    dx = dh = dweight = dbias = None
    with on_device_of(grad), without_autocast(grad):
        x, h, weight, bias = _dense(inputs)
        grad, saved = grad.contiguous(), saved._replace(norm=saved.norm.contiguous(), l=saved.l.contiguous())
        first = gradients.upstream(call, grad, saved) if training else None
        if needs[0]:
            source, norm = (grad, saved.norm) if first is None else (first[0], None)
            du = gradients.du(call, source, norm, h, weight, bias)
            dx = F.fold(du, inputs.x.shape[2:], spec.kernel, padding=spec.padding, stride=spec.stride)
            dx = dx.to(call.dtype).contiguous(memory_format=memory_format(inputs.x))
        if first is not None:
            form = _by_signs if spec.norm == "l1" else _by_gram_matrices
            dh, dweight, dbias = form(call, first, gradients.patches(call, x), h, weight, bias, needs)
            if dh is not None:
                dh = dh.view(len(x), *call.size, call.rank).permute(0, 3, 1, 2).to(call.dtype)
    return inputs.gradients((dx, dh, dweight, dbias), needs)


def _by_gram_matrices(
    call: Call, first: tuple[Tensor, Tensor], u: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, needs
) -> tuple:
    """The gradients of h, the weight and the bias; one not needed is None."""
    made = gradients.wide_weight(call, weight, bias)
    dh = gradients.dh(call, *first, u, h, weight, made) if needs[1] else None
    others = gradients.dweight(call, *first, u, h, made, needs[3]) if needs[2] or needs[3] else (None, None)
    return dh, *others


def _by_signs(
    call: Call, first: tuple[Tensor, Tensor], u: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, needs
) -> tuple:
    """As :func:`_by_gram_matrices`, for the norm ``"l1"``."""
    dh = signs.dh(call, *first, u, h, weight, bias) if needs[1] else None
    others = signs.dweight(call, *first, u, h, weight, bias, needs[3]) if needs[2] or needs[3] else (None, None)
    return dh, *others


def _dense(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """x without gaps, h with the values of a pixel side by side, weight and bias."""
    x, h, weight, bias = inputs
    return x.contiguous(), by_pixel(h), weight.contiguous(), None if bias is None else bias.contiguous()
