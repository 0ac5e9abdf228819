"""The vendor's products: those of cuDNN and cuBLAS, through torch.

They take their operands as they are: a backward that is called under autocast would round them anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.checks import without_autocast
from ...core.formats import channels_last
from ..call import Call

__all__ = ["gradients", "product"]


def product(call: Call, x: Tensor, operand: Tensor) -> Tensor:
    """z = x ⋆ operand, ``[N, F, OH, OW]``, or with a third axis, channels_last."""
    with without_autocast(x):
        if call.is_linear:
            return (x.flatten(1) @ operand.flatten(1).t())[:, :, None, None]
        return channels_last(torch.ops.aten.convolution(x, operand, None, *_geometry(call)))


def gradients(call: Call, u: Tensor, x: Tensor, operand: Tensor, needs):
    """dx and the gradient of the operand, both channels_last, and dbias; one not needed is None.

    u is that of T·N images where dx alone is needed, and x always of N.
    """
    dx = partial = None
    if len(u) != len(x):
        x = x[:1].expand(len(u), *x.shape[1:])  # a product that forms dx alone reads nothing but its shape
    dbias = u.sum((0, *range(2, u.dim())), dtype=call.sums) if needs[2] else None
    if call.is_linear:
        with without_autocast(x):
            if needs[0]:
                dx = (u.flatten(1) @ operand.flatten(1))[:, :, None, None]
            if needs[1]:
                partial = u.flatten(1).t() @ x.flatten(1)
    elif needs[0] or needs[1]:
        dx, partial, _ = torch.ops.aten.convolution_backward(
            u, x, operand, None, *_geometry(call), (needs[0], needs[1], False)
        )
        dx, partial = (None if t is None else channels_last(t) for t in (dx, partial))
    return dx, partial, dbias


def _geometry(call: Call) -> tuple:
    return call.stride, call.padding, call.dilation, False, [0] * len(call.stride), call.groups
