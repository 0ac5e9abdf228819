"""The attention of a vision transformer in PyTorch's own operators: softmax(scale · q kᵀ) v, with derivatives.

``qkv`` is what one linear layer gives: [images, tokens, 3 · heads · width]. Its parts are put in the order in which
batched products read them once, and not product by product; the scale is a factor of the product, and the softmax is
formed in place. A gradient of a gradient is formed by operators that autograd knows.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import _torch
from ..core.checks import without_autocast

__all__ = ["attention", "explained", "inferred"]


def attention(qkv: Tensor, heads: int, scale: float, state: MutableMapping | None, dtype: torch.dtype) -> Tensor:
    """The attention with the derivatives of training, or of the late explanation mode that ``state`` holds.

    ``dtype`` is that of the attention weights and of the result.
    """
    return _joined(_Attention.apply(_by_head(qkv, 3, heads), scale, state, dtype), heads)


def explained(qk: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """The attention in the early explanation mode: of queries, keys and values, the values alone have a gradient."""
    with torch.no_grad(), without_autocast(qk):
        q, k = _by_head(qk, 2, heads)
        weights = _weights(q, k, scale, qk.dtype)
    return _joined(torch.bmm(weights, _by_head(v, 1, heads)[0]), heads)


def inferred(qkv: Tensor, heads: int, scale: float, dtype: torch.dtype) -> Tensor:
    """The attention without derivatives."""
    with torch.no_grad(), without_autocast(qkv):
        if _is_fused(qkv, heads, scale, dtype):
            q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
        q, k, v = _by_head(qkv, 3, heads)
        return _joined(torch.bmm(_weights(q, k, scale, dtype), v.to(dtype)), heads)


def _is_fused(qkv: Tensor, heads: int, scale: float, dtype: torch.dtype) -> bool:
    """Whether PyTorch's fused attention is exact here, and no slower.

    On the CPU it is slower in half precision. A row of products that all overflow gives 0 there instead of NaN.
    """
    if qkv.device.type != "cpu" or dtype is not qkv.dtype or dtype not in (torch.float32, torch.float64) or scale <= 0:
        return False
    largest = max(map(abs, map(float, qkv.aminmax())))
    width = qkv.shape[-1] // (3 * heads)
    return largest * largest * width * max(scale, 1.0) < torch.finfo(dtype).max  # False for NaN


class _Attention(torch.autograd.Function):
    """Of queries, keys and values by head, [3, images · heads, tokens, width]."""

    @staticmethod
    def forward(ctx: Any, parts, scale, state, dtype):
        with without_autocast(parts):
            q, k, v = parts
            weights = _weights(q, k, scale, dtype)
            ctx.save_for_backward(parts, weights)
            ctx.scale, ctx.state = scale, state
            return torch.bmm(weights, v.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grads):
        (grad,), (parts, weights) = grads, ctx.saved_tensors
        frozen = ctx.state is not None and bool(ctx.state["fixed_weights"])
        by_operators = torch.is_grad_enabled() or _torch.is_seen((parts, grad))
        with without_autocast(parts):
            if by_operators:
                found = _differentiable(parts, grad, ctx.scale, frozen)
            else:
                found = _in_place(parts, weights, grad, ctx.scale, frozen)
        return found, None, None, None


def _in_place(parts: Tensor, weights: Tensor, grad: Tensor, scale: float, frozen: bool) -> Tensor:
    """The gradient at ``parts``, written once."""
    q, k, v = parts
    found = torch.empty_like(parts)
    if weights.dtype is parts.dtype:
        torch.bmm(weights.mT, grad, out=found[2])
    else:
        found[2].copy_(torch.bmm(weights.mT, grad))
    if frozen:
        found[:2].zero_()
        return found
    of_weights = torch.bmm(grad, v.to(weights.dtype).mT)
    of_products = _torch.softmax_backward_in_place(of_weights, weights).to(parts.dtype)
    torch.baddbmm(found[0], of_products, k, beta=0, alpha=scale, out=found[0])
    torch.baddbmm(found[1], of_products.mT, q, beta=0, alpha=scale, out=found[1])
    return found


def _differentiable(parts: Tensor, grad: Tensor, scale: float, frozen: bool) -> Tensor:
    """The gradient at ``parts`` as a function of ``parts`` and ``grad``."""
    q, k, v = parts
    wide = torch.promote_types(parts.dtype, torch.float32)
    weights = torch.softmax(q @ k.mT * scale, -1, dtype=wide)
    of_v = (weights.to(grad.dtype).mT @ grad).to(v.dtype)
    if frozen:
        return torch.stack((torch.zeros_like(q), torch.zeros_like(k), of_v))
    of_weights = (grad @ v.to(grad.dtype).mT).to(wide)
    of_products = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
    of_products = of_products.to(parts.dtype)
    return torch.stack((of_products @ k * scale, of_products.mT @ q * scale, of_v))


def _weights(q: Tensor, k: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The attention weights, one matrix for each image and head."""
    products = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
    if dtype is not products.dtype:
        return torch.softmax(products, -1, dtype=dtype)
    return torch.softmax(products, -1, out=products)


def _by_head(t: Tensor, parts: int, heads: int) -> Tensor:
    """[images, tokens, parts · heads · width] as [parts, images · heads, tokens, width]."""
    images, tokens, channels = t.shape
    width = channels // (parts * heads)
    split = t.reshape(images, tokens, parts, heads, width).permute(2, 0, 3, 1, 4)
    return split.reshape(parts, images * heads, tokens, width).contiguous()


def _joined(t: Tensor, heads: int) -> Tensor:
    """[images · heads, tokens, width] as [images, tokens, heads · width]."""
    rows, tokens, width = t.shape
    images = rows // heads
    return t.reshape(images, heads, tokens, width).transpose(1, 2).reshape(images, tokens, heads * width)
