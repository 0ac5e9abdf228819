"""The units in PyTorch's own operators, in tiles of pixels, on every device: they serve what no kernel does.

A tile has at most ``TILE`` dynamic weights; the backward forms them again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.candidate import Backend, Candidate
from ..core.checks import without_autocast
from ..core.formats import memory_format
from ..core.formula import accumulated
from .call import Call
from .reference import patches_of, products, scaled, wide
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES", "TILE", "tiles"]

TILE = 2**25
"""Dynamic weights in memory at once: 128 MiB in fp32."""


def tiles(call: Call, most: int) -> Iterator[slice]:
    """The pixels of every image in parts with at most ``most`` dynamic weights, unless one pixel has more."""
    plane = call.size[0] * call.size[1]
    step = max(1, most // max(1, call.x_shape[0] * call.patch * call.outputs))
    return (slice(first, first + step) for first in range(0, plane, step))


def _wide(inputs: Inputs, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Patches ``[N, P, pixels]``, h ``[N, R, pixels]``, weight and bias, in the dtype of sums."""
    x, h, weight, bias = wide(inputs)
    return patches_of(x, call.spec), h.flatten(2), weight, bias


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    patches, h, weight, bias = _wide(inputs, call)
    shape = patches.shape[0], call.outputs, patches.shape[2]
    y, norm, l = (patches.new_empty(shape) for _ in range(3))  # noqa: E741
    for part in tiles(call, TILE):
        w, l[..., part] = products(patches[..., part], h[..., part], weight, bias)
        norm[..., part], y[..., part] = scaled(w, l[..., part], call.spec.norm)
    y = y.unflatten(2, call.size).to(inputs.x.dtype).contiguous(memory_format=memory_format(inputs.x))
    kept = [t.transpose(0, 1).flatten(1) for t in (norm, l)]
    return y, kept[0], y.new_empty(0, dtype=norm.dtype) if call.spec.detach else kept[1]


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    """The gradients of the inputs; one not needed is None. Those of frozen dynamic weights are zeros."""
    patches, h, weight, bias = _wide(inputs, call)
    images, kind = len(patches), call.spec.norm
    of_each = (call.outputs, images, -1)
    norm = saved.norm.view(of_each).transpose(0, 1)
    of_u = accumulated(grad).flatten(2) * _scale(norm, kind)
    training = any(needs[1:]) and not frozen
    of_w = of_u * saved.l.view(of_each).transpose(0, 1) * _slope(norm, kind) if training else None
    dpatches, dh = torch.zeros_like(patches), torch.zeros_like(h)
    dweight, dbias = torch.zeros_like(weight), weight.new_zeros(len(weight))
    with without_autocast(patches):  # which a backward may be called under
        for part in tiles(call, TILE):
            w, _ = products(patches[..., part], h[..., part], weight, bias)
            of_u_here = of_u[..., part].unsqueeze(1)
            dpatches[..., part] = (w * of_u_here).sum(2)
            if of_w is not None:
                w = w.sign() if kind == "l1" else w
                dw = patches[..., part].unsqueeze(2) * of_u_here
                dw = dw.addcmul_(w, of_w[..., part].unsqueeze(1)).flatten(1, 2)
                dh[..., part] = weight.mT @ dw
                dweight += (dw @ h[..., part].mT).sum(0)
                dbias += dw.sum((0, 2))
    spec, size = call.spec, inputs.x.shape[2:]
    dx = F.fold(dpatches, size, spec.kernel, padding=spec.padding, stride=spec.stride)  # type: ignore[arg-type]
    return inputs.gradients((dx, dh.view(inputs.h.shape), dweight, dbias), needs)


def _scale(norm: Tensor, kind: str) -> Tensor:
    """What the product of w and the patch is multiplied by; 0 for a zero w."""
    return norm / (1 + norm.square()) if kind == "squash" else _inverse(norm)


def _slope(norm: Tensor, kind: str) -> Tensor:
    """The derivative of the scale by w, divided by the scale and by w (for ``"l1"`` by the sign of w)."""
    square = norm.square()
    if kind == "squash":
        return (1 - square) / (1 + square) * _inverse(square)
    return -_inverse(norm if kind == "l1" else square)


def _inverse(t: Tensor) -> Tensor:
    return torch.where(t == 0, 0, 1 / t)


BACKEND = Backend("torch", why_not=lambda call: [])
CANDIDATES = (Candidate("torch", "tiles", forward, backward),)
