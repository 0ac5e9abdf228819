"""The B-cos transform in plain PyTorch: every other backend is checked against it. It is differentiable to any order.

Formulas: Böhle et al., "B-cos Networks", CVPR 2022 (arXiv 2205.10268), eq. 3, and TPAMI 2024 (arXiv 2306.10898).
Sums and powers are formed in fp32 for half-precision inputs. No derivative is NaN at a zero patch or a zero filter.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from operator import getitem

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.formula import FrozenScale, accumulated
from .spec import Inputs, Spec

__all__ = ["patch_norm", "scaled", "transform", "weight_norm"]


def _root(squares: Tensor) -> Tensor:
    """The square root, with derivatives of every order equal to 0 at 0."""
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())


def weight_norm(weight: Tensor) -> Tensor:
    """‖w‖ of each filter: ``[O·M, ...] -> [O·M]``, fp32 for half-precision weights."""
    return _root(accumulated(weight).flatten(1).square().sum(1))


def unit_weight(weight: Tensor) -> Tensor:
    """ŵ = w/‖w‖, and 0 for a zero filter; same shape, fp32 for half-precision weights."""
    norm = weight_norm(weight).view(-1, *[1] * (weight.dim() - 1))
    return torch.where(norm == 0, 0, accumulated(weight) / torch.where(norm == 0, 1, norm))


def patch_norm(x: Tensor, kernel_size: tuple[int, ...], spec: Spec) -> Tensor:
    """n of every patch: linear ``[..., K] -> [..., 1]``, convolution ``[N, C, H, W] -> [N, G, OH, OW]``.

    A convolution may have one axis or three, too.
    """
    squares = accumulated(x).square()
    if spec.is_linear:
        squares = squares.sum(-1, keepdim=True)
    else:
        squares = _without_border(squares.unflatten(1, (spec.groups, -1)).sum(2), spec.border)
        window = squares.new_ones(spec.groups, 1, *kernel_size)
        squares = _convolution(squares, window, None, spec)
    inside, outside = spec.norm_eps
    return (_root(squares) if inside == 0 else (squares + inside).sqrt()) + outside


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
    convolution = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    return convolution(x, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def _without_border(values: Tensor, border: tuple[int, ...]) -> Tensor:
    """The values with 0 in place of those at the border; its widths are as in :attr:`Spec.border`."""
    if not border:
        return values
    ends = list(zip(border[::2], border[1::2], strict=True))
    inner = values
    for axis, (low, high) in enumerate(ends, 2):
        inner = inner.narrow(axis, low, inner.shape[axis] - low - high)
    return F.pad(inner, [width for end in reversed(ends) for width in end])


def scale(linear: Tensor, norm: Tensor, b: Tensor | None, spec: Spec) -> Tensor:
    """s = |cos|^(b-1) of ``linear`` ``[N, O, ...]`` or ``[..., O]``, given ``norm`` ``[N, G, ...]`` or ``[..., 1]``."""
    if not spec.is_linear and 1 < spec.groups < linear.shape[1]:
        norm = norm.repeat_interleave(linear.shape[1] // spec.groups, 1)
    cos = linear.abs() / norm
    if b is None:
        assert spec.b is not None
        if spec.b == 2 and spec.exact_two:
            return cos
        at_zero = 1.0 if spec.b == 1 else 0.0  # no float(): a compiler may have a symbol for b
        return _power(cos + spec.cos_eps, spec.b - 1, at_zero)
    b = b.to(cos.dtype)
    epsilon = (b != 2).to(cos.dtype) * spec.cos_eps if spec.exact_two else spec.cos_eps
    return _power(cos + epsilon, b - 1, (b == 1).to(cos.dtype))


def _power(base: Tensor, exponent: Tensor | float, at_zero: Tensor | float) -> Tensor:
    """base^exponent without NaN in its derivatives at base 0, where its value is ``at_zero``."""
    zero = base == 0
    return torch.where(zero, at_zero, torch.where(zero, 1, base).pow(exponent))


def transform(inputs: Inputs, spec: Spec, late: MutableMapping | None = None) -> Tensor:
    """y of the transform: linear ``[..., K] -> [..., O]``, convolution ``[N, C, H, W] -> [N, O, OH, OW]``.

    ``late["fixed_weights"]`` is the late explanation mode, read in the backward.
    """
    x, weight, bias, tensor_b = inputs
    w = (unit_weight(weight) if spec.unit else weight).to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    products = F.linear(x, w, bias) if spec.is_linear else _convolution(x, w, bias, spec)
    return scaled(products, lambda: patch_norm(x, tuple(weight.shape[2:]), spec), tensor_b, spec, late)


def scaled(
    products: Tensor,
    patch_norms: Callable[[], Tensor],
    tensor_b: Tensor | None,
    spec: Spec,
    late: MutableMapping | None = None,
) -> Tensor:
    """y of the products of x with all filters, ``[N, O·M, ...]`` or ``[..., O·M]``; N may lack.

    ``patch_norms()``, which is not called for b = 1, is n as :func:`patch_norm` gives it.
    """
    linear, channels = products, -1 - len(spec.stride)
    if spec.max_out > 1:
        linear = linear.unflatten(channels, (-1, spec.max_out)).max(channels).values
    if spec.b == 1:
        return linear.to(spec.out_dtype)
    linear, norm = accumulated(linear), accumulated(patch_norms())
    seen, size = (linear.detach(), norm.detach()) if spec.detach else (linear, norm)
    s = scale(seen, size, tensor_b, spec)
    y = s * linear if late is None else FrozenScale.apply(linear, s, partial(getitem, late, "fixed_weights"))
    return y.to(spec.out_dtype)
