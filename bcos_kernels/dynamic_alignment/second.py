"""The second derivative of the formula, in tiles of pixels: a loss on explanations needs no more memory than a tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.formula import accumulated
from .call import of
from .reference import patches_of, products, scaled, wide
from .spec import Inputs, Spec
from .tiled import tiles

__all__ = ["TILE", "second"]

TILE = 2**21
"""Dynamic weights in memory at once: 8 MiB in fp32, and the derivatives hold some fifteen tensors of this size."""


def second(derived: Callable, grad: Tensor, inputs: Inputs, spec: Spec, grads: tuple, wanted) -> tuple:
    """See :class:`bcos_kernels.core.op.Op`. No other pixel is met by a pixel's patch, its part of h and its gradient.

    Every sum over tiles is formed in the dtype of sums.
    """
    call, (x, h, weight, bias) = of(inputs, spec), wide(inputs)
    of_dx, of_dh, of_dweight, of_dbias = (None if g is None else accumulated(g) for g in grads)
    by_pixel = [accumulated(grad).flatten(2), patches_of(x, spec), h.flatten(2)]
    of_dpatches = None if of_dx is None else patches_of(of_dx, spec)
    of_dh = None if of_dh is None else of_dh.flatten(2)

    def function(patches: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if spec.detach:
            h, weight, bias = h.detach(), weight.detach(), None if bias is None else bias.detach()
        return scaled(*products(patches, h, weight, bias), spec.norm)[1]

    of_pixels: list[tuple] = []
    sums: list[Tensor | None] = [None, None]
    for part in tiles(call, TILE):
        of_grad, patches, h_here = (t[..., part] for t in by_pixel)
        given = (*(None if t is None else t[..., part] for t in (of_dpatches, of_dh)), of_dweight, of_dbias)
        *found, of_weight, of_bias = derived(function, of_grad, (patches, h_here, weight, bias), given, wanted)
        of_pixels.append(tuple(found))
        sums = [b if a is None else a + b for a, b in zip(sums, (of_weight, of_bias), strict=True)]
    dgrad, dpatches, dh = (
        torch.cat(found, -1) if want else None
        for found, want in zip(zip(*of_pixels, strict=True), wanted, strict=False)
    )
    dx = None
    if dpatches is not None:
        dx = F.fold(dpatches, x.shape[2:], spec.kernel, padding=spec.padding, stride=spec.stride)  # type: ignore[arg-type]
    likes = (grad, *inputs)
    found = (dgrad, dx, dh, *sums)
    pairs = zip(found, likes, strict=True)
    return tuple(None if g is None or t is None else g.reshape(t.shape).to(t.dtype) for g, t in pairs)
