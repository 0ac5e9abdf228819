"""A B-cos layer whose linear part is called as the module that it is: a hook must see it, or its code was changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import checks, reference
from .spec import Spec

__all__ = ["by_parts", "unseen"]


def unseen(linear: Any) -> tuple[Tensor, Tensor | None] | None:
    """The weight and the bias of a linear part.

    None where a hook or a method that was assigned on the instance takes part in its calls.
    """
    own = linear.__dict__
    if (
        own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_backward_hooks"]
        or "forward" in own
    ):
        return None
    held = own["_parameters"]
    if "weight" in held and "bias" in held and not ("weight" in own or "bias" in own):  # ten times as fast
        return held["weight"], held["bias"]
    return linear.weight, linear.bias


def by_parts(x: Tensor, linear: Any, norms: Callable[[Tensor], Tensor] | None, b, detach, options: tuple) -> Tensor:
    """The layer from ``linear(x)`` and ``norms(x)`` by the formula in plain PyTorch, with the dtypes of the fused one.

    ``norms(x)`` are ``[N, 1, ...]`` or ``[N, O, ...]`` of a convolution, ``norms`` is None of a linear layer;
    ``options`` are those of :func:`bcos_kernels.transform.functional.transform`.
    """
    max_out, _, _, norm_eps, cos_eps, exact_two, out_dtype, _ = options
    exponent, _ = checks.exponent(b, x)
    products = linear(x)
    if out_dtype is None:
        low = checks.autocast_dtype(x.device.type) if x.dtype != torch.float64 else None
        out_dtype = x.dtype if low is None else checks.autocast_result(low, x, b)
        out_dtype = products.dtype if exponent == 1 else out_dtype
    spec = Spec(
        stride=tuple(getattr(linear, "stride", ())),
        max_out=max_out,
        b=exponent,
        norm_eps=norm_eps,
        cos_eps=cos_eps,
        exact_two=exact_two,
        detach=detach,
        out_dtype=out_dtype,
    )
    patch_norms = partial(reference.patch_norm, x, (), spec) if norms is None else partial(norms, x)
    return reference.scaled(products, patch_norms, b if exponent is None else None, spec)
