"""A B-cos layer whose linear part is called as the module that it is: a hook must see it, or its code is another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import _torch
from ..core.checks import autocast_dtype, sizes
from . import checks, reference
from .repeated import held
from .spec import Spec

__all__ = ["by_parts", "is_product", "patch_norms", "sized", "unseen"]


def is_product(linear: Any, kinds: tuple[type, ...]) -> bool:
    """Whether the code of a linear part is that of one of ``kinds``, and not that of an adapter in its place."""
    cls = type(linear)
    return cls in kinds or any(
        issubclass(cls, kind) and all(getattr(cls, name, None) is getattr(kind, name, None) for name in _CODE)
        for kind in kinds
    )


_CODE = "forward", "_conv_forward", "__call__", "_call_impl"


def unseen(linear: Any, kinds: tuple[type, ...], sets_tensors: bool = False) -> tuple[Tensor, Tensor | None] | None:
    """The weight and the bias of a linear part, which is usually of one of ``kinds``.

    None where its code is another, or where a hook, which may be one of all modules, or a method that was assigned on
    the instance takes part in its calls. ``sets_tensors`` runs hooks that only set the weight, as those of pruning.
    """
    if _torch.has_global_hook() or not is_product(linear, kinds):
        return None
    own = linear.__dict__
    if "forward" in own or _torch.has_hook(linear, sets_tensors):
        return None
    if own["_forward_pre_hooks"]:
        _torch.set_tensors(linear)
    held = own["_parameters"]
    if "weight" in held and "bias" in held and not ("weight" in own or "bias" in own):  # ten times as fast
        return held["weight"], held["bias"]
    return linear.weight, linear.bias


def sized(layer: Any) -> Any:
    """What holds the geometry of a B-cos convolution: its linear part, or itself where that is another's module."""
    linear = held(layer, "linear")
    return linear if is_product(linear, layer.linear_kinds) else layer


def patch_norms(x: Tensor, layer: Any) -> Tensor:
    """n = √(Σ_patch x² + 1e-6) of a B-cos convolution: ``[N, 1, ...]``; with groups ``[N, O, ...]``. N may lack."""
    conv, axes = sized(layer), layer.axes
    if conv is layer:
        kernel = sizes("kernel_size", conv.kernel_size, 1, axes)
        shape = layer.out_channels * layer.max_out, layer.in_channels // layer.groups, *kernel
        weight = torch.empty(shape, device="meta")
    else:  # it may have another size than the layer was made with
        weight = conv.weight
    kernel, outputs = tuple(weight.shape[2:]), len(weight) // layer.max_out
    stride, pads, dilation, groups = checks.convolution_geometry(
        x, weight, axes, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    )
    batched, amounts = x.dim() == axes + 2, [pads[i + end] for i in range(2 * axes - 2, -1, -2) for end in (0, 1)]
    padded = F.pad(x if batched else x.unsqueeze(0), amounts)
    spec = Spec(stride=stride, padding=(0,) * axes, dilation=dilation, groups=groups)
    norms = reference.patch_norm(padded, kernel, spec).to(x.dtype)
    if groups > 1:
        norms = norms.repeat_interleave(outputs // groups, 1)
    return norms if batched else norms.squeeze(0)


def by_parts(
    x: Tensor, linear: Any, norms: Callable[[Tensor], Tensor] | None, b, detach, geometry: tuple, options: tuple
) -> Tensor:
    """The layer from ``linear(x)`` and ``norms(x)`` by the formula in plain PyTorch, with the dtypes of the fused one.

    ``norms(x)`` are ``[N, 1, ...]`` or ``[N, O, ...]`` of a convolution, and ``norms`` is None of a linear layer.
    ``geometry`` and ``options`` are those of :func:`bcos_kernels.transform.functional.transform`.
    """
    max_out, _, _, norm_eps, cos_eps, exact_two, out_dtype, _ = options
    exponent = checks.exponent(b, x)
    products = linear(x)
    count = products.shape[-1 - (geometry[0] if geometry else 0)]
    if count % max_out:
        raise ValueError(f"max_out={max_out} does not divide the {count} outputs of the linear part")
    if out_dtype is None:
        low = autocast_dtype(x.device.type)
        out_dtype = products.dtype if exponent == 1 else checks.result_dtype(low, x, b)
    spec = Spec(
        stride=(1,) * geometry[0] if geometry else (),
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
