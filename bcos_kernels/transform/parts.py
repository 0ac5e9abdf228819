"""A B-cos layer whose linear part is called as the module that it is: a hook must see it, or its code was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.formula import accumulated
from . import checks, reference
from .spec import Spec

__all__ = ["are_seen", "by_parts"]


def are_seen(linear: nn.Module) -> bool:
    """Whether a hook or a method that was assigned on the instance takes part in the calls of a linear part."""
    own = linear.__dict__
    return bool(
        own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_backward_hooks"]
        or "forward" in own
    )


def by_parts(x: Tensor, linear: Any, norms: Callable[[Tensor], Tensor] | None, b, detach, options: tuple) -> Tensor:
    """The layer from ``linear(x)`` and ``norms(x)`` by the formula in plain PyTorch, with the dtypes of the fused one.

    ``norms(x)`` are ``[N, 1, ...]`` or ``[N, O, ...]`` of a convolution, ``norms`` is None of a linear layer;
    ``options`` are those of :func:`bcos_kernels.transform.functional.transform`.
    """
    max_out, _, _, norm_eps, cos_eps, exact_two, out_dtype, _ = options
    exponent, _ = checks.exponent(b, x)
    cast = checks.autocast_dtype(x.device.type) is not None and x.dtype != torch.float64
    y = linear(x)
    if max_out > 1:
        channels = -1 - len(getattr(linear, "kernel_size", ()))
        y = y.unflatten(channels, (-1, max_out)).max(channels).values
    if exponent == 1:
        return y if out_dtype is None else y.to(out_dtype)
    norm = reference.patch_norm(x, (), Spec(norm_eps=norm_eps)) if norms is None else norms(x)
    y, norm = accumulated(y), accumulated(norm)
    seen, size = (y.detach(), norm.detach()) if detach else (y, norm)
    spec = Spec(b=exponent, cos_eps=cos_eps, exact_two=exact_two)
    y = reference.scale(seen, size, b if exponent is None else None, spec) * y
    return y.to(out_dtype or (torch.float32 if cast else x.dtype))
