"""Dynamic alignment units in plain PyTorch: every other backend is checked against it. Any order can be derived.

Source: Böhle et al., Convolutional Dynamic Alignment Networks for Interpretable Classifications, CVPR 2021
(arXiv 2104.00032), eqs. 1 to 3. It forms the dynamic weights of all pixels, as the authors' code does, because that is
the only form whose derivatives of every order are exact for all three norms. No derivative is NaN where w is zero.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.formula import accumulated
from .spec import Inputs, Spec

__all__ = ["dynamic_alignment", "patches_of", "products", "scaled", "wide"]


def dynamic_alignment(inputs: Inputs, spec: Spec, late: MutableMapping | None = None) -> tuple[Tensor]:
    """y ``[N, O, OH, OW]``. ``late`` is part of an op's interface; units have the early explanation mode alone."""
    x, h, weight, bias = wide(inputs)
    if spec.detach:
        h, weight, bias = h.detach(), weight.detach(), None if bias is None else bias.detach()
    w, l = products(patches_of(x, spec), h.flatten(2), weight, bias)  # noqa: E741
    _, y = scaled(w, l, spec.norm)
    return (y.unflatten(2, h.shape[2:]).to(inputs.x.dtype),)


def wide(inputs: Inputs) -> Inputs:
    """The same in the dtype of sums."""
    x, h, weight, bias = inputs
    return Inputs(accumulated(x), accumulated(h), accumulated(weight), None if bias is None else accumulated(bias))


def patches_of(x: Tensor, spec: Spec) -> Tensor:
    """``[N, P, pixels]``: what every pixel of y sees of x ``[N, C, H, W]``."""
    return F.unfold(x, spec.kernel, padding=spec.padding, stride=spec.stride)  # type: ignore[arg-type]


def products(patches: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The dynamic weights ``[N, P, O, pixels]`` for h ``[N, R, pixels]``, and their products with the patches."""
    w = weight @ h
    w = (w if bias is None else w + bias.unsqueeze(1)).unflatten(1, (patches.shape[1], -1))
    return w, (patches.unsqueeze(2) * w).sum(1)


def scaled(w: Tensor, l: Tensor, norm: str) -> tuple[Tensor, Tensor]:  # noqa: E741
    """``(‖w‖, scale(‖w‖)·l)`` for w ``[N, P, O, pixels]``. Neither has NaN or inf in a derivative where w is 0."""
    sums = w.abs().sum(1) if norm == "l1" else w.square().sum(1)
    is_zero = sums == 0
    sums = torch.where(is_zero, 1, sums)
    size = sums if norm == "l1" else sums.sqrt()
    y = torch.where(is_zero, 0, l * size / (1 + sums) if norm == "squash" else l / size)
    return torch.where(is_zero, 0, size), y
