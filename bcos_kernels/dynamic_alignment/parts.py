"""Dynamic alignment units whose dynamic weights are made by modules that are called: a hook or an adapter sees it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import autocast_dtype, without_autocast
from ..core.formula import accumulated
from . import reference

__all__ = ["by_parts"]


def by_parts(
    x: Tensor, weights: Callable[[Tensor], Tensor], kernel, stride, padding, norm: str, detach: bool
) -> Tensor:
    """The layer from its dynamic weights ``weights(x)`` of x ``[N, C, H, W]`` or ``[C, H, W]``.

    The formula is in plain PyTorch, with the dtypes of the fused one, and all dynamic weights are in memory at once.
    """
    images = x if x.dim() == 4 else x.unsqueeze(0)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not detach):
        made = weights(images)
    with without_autocast(x):
        patches = F.unfold(accumulated(images), kernel, padding=padding, stride=stride)
        w = accumulated(made).unflatten(1, (patches.shape[1], -1)).flatten(3)
        _, y = reference.scaled(w, (patches.unsqueeze(2) * w).sum(1), norm)
    y = y.unflatten(2, made.shape[2:])
    y = y if autocast_dtype(x.device.type) is not None else y.to(x.dtype)
    return y if x.dim() == 4 else y.squeeze(0)
