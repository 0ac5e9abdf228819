"""Pairs: the backward of a norm leaves its last pass to the layer that made its input.

At every channel dx of a norm is a map of the gradient and of x: ``dx = grad · a + (x − m) · b + c``. That x is the
layer's y, which the layer's backward reads anyway, unless it reads l. So the norm sends the gradient on as it came, and
leaves the map ``[4, C]`` (a, b, m and c of each channel) with the layer's node of autograd's graph. The layer applies
it where it reads gradient and y: three passes over a tensor of y's size are saved.

What travels between the two nodes is then not the gradient of y. A hook of y, ``y.retain_grad()`` and a gradient with
respect to y alone are seen in time, and the norm forms dx itself. A second use of y is seen too late: that raises an
error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _torch, kernels

__all__ = ["leave", "left", "record"]


class Left(NamedTuple):
    """What a norm left with the layer before it."""

    grad: Tensor
    """The gradient that must arrive at the layer."""
    version: int
    gradient_map: Tensor


def leave(
    ctx, grad: Tensor | None, joined: tuple, inputs, saved, frozen: bool, needs: tuple[bool, ...]
) -> tuple | None:
    """The gradients of a paired call, with ``grad`` in place of dx, whose map is left with the node that made x.

    None where that is not possible, and the call must form dx itself.
    """
    op, call = ctx.op, ctx.call
    if torch.compiler.is_compiling():  # a compiled backward, to which the nodes of the graph say nothing
        return None
    if grad is None or not grad.numel() or not needs[0] or not call.has_gradient_map or torch.is_grad_enabled():
        return None
    node, _ = ctx.next_functions[0]
    if _torch.is_seen((grad, *inputs)) or _is_recorded(ctx) or _is_watched(inputs[0], node):
        return None
    maker = node if type(node) is type(ctx) else kernels.maker_of(inputs[0])
    if maker is None or _is_recorded(maker):
        return None
    if maker.call.spec.out_dtype != grad.dtype or not maker.op.takes_gradient_map(maker.call, maker.backend):
        return None
    found = op.gradient_map(grad, joined, inputs, saved, call, frozen, needs, ctx.backend)
    if found is None:
        return None
    if maker is node:
        maker.left = Left(grad, grad._version, found[0])
    else:
        kernels.leave(inputs[0], grad, found[0], _USED_TWICE)
    return grad, *found[1:]


_USED_TWICE = (
    "pairs=True: something beside the norm behind it uses the output of a B-cos layer, whose gradient is then not "
    "formed: accelerate this model without pairs"
)


def _is_watched(y: Tensor, maker: Any) -> bool:
    """Whether somebody may see the gradient of y; a y that a hook on saved tensors gave back says nothing about it."""
    alone = not any(_torch.will_run(node) for node, _ in maker.next_functions)  # what the backward asks for is y itself
    return alone or y.grad_fn is not maker or kernels.has_hooks(y)


def record(ctx) -> None:
    """Notes that a backward of this node was recorded: a derivative of it may then reach the node's tensors."""
    ctx.recorded = True


def _is_recorded(ctx) -> bool:
    return getattr(ctx, "recorded", False)


def left(ctx, grad: Tensor | None) -> Tensor | None:
    """The map that ``grad`` still has to pass before it is the gradient of the node's first output; often None.

    Raises:
        RuntimeError: something beside the norm uses this output, too.
    """
    found = getattr(ctx, "left", None)
    if found is None:
        return None
    ctx.left = None
    if grad is not found.grad or grad._version != found.version:
        raise RuntimeError(_USED_TWICE)
    if found.gradient_map.is_cuda:  # the norm may have run on another stream, of which alone the allocator knows
        found.gradient_map.record_stream(torch.cuda.current_stream(found.gradient_map.device))
    return found.gradient_map
