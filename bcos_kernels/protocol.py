"""How the published B-cos layers are read: their attributes, at every call, and what rules a module out.

The layers of ``bcos``, of its first version, of B-cosification, of model guidance with its descendants and of
the one-file ResNet hold the same few things under the same names. What their attributes do not say (epsilons,
unit weights) is a :class:`Variant`, measured by :mod:`bcos_kernels.probe`.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from numbers import Real
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from .functional import bcos_conv2d, bcos_linear
from .modules import BcosLayer

__all__ = ["Variant", "changed", "is_candidate", "objection", "overrides", "transform", "weighted"]

MATHEMATICS = ("forward", "forward_impl", "fwd_b", "fwd_2", "calc_patch_norms", "_calc_patch_norms_slow")
EXTENSIONS = ("BcosConv2dWithScale", "BcosifyConv2d", "BcosifyLinear")
"""Published classes that override the mathematics of another; any other override is somebody's own."""

OPTIONAL = ("b_loss", "clamping", "dynamic_multiplication", "max_out", "normalized_weights", "scale")
"""Attributes that only some of the published layers have."""


@dataclass(frozen=True)
class Variant:
    """One of the published formulas; the options are those of :mod:`bcos_kernels.functional`."""

    normalize_weights: bool
    norm_eps: tuple[float, float]
    cos_eps: float
    scaled: bool
    """Whether the output is divided by ``module.scale``."""
    attributes: frozenset[str]
    """Those of ``OPTIONAL`` that the layer has."""
    linear_class: type
    """The class that defines the forward of the layer that holds the weight."""


def weighted(module: nn.Module) -> nn.Module | None:
    """The ``nn.Conv2d`` or ``nn.Linear`` that holds the weight: ``module.linear``, or the module itself."""
    found = module._modules.get("linear", module)
    return found if isinstance(found, (nn.Conv2d, nn.Linear)) else None


def transform(module: nn.Module, x: Tensor, variant: Variant, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)`` by the fused layers; every value is read from the module now."""
    has, layer = variant.attributes, weighted(module)
    b, exact_two = exponent(module, has)
    if isinstance(b, Tensor) and b.device != x.device:
        b = b.to(x.device)
    options = {
        "b": b,
        "max_out": module.max_out if "max_out" in has else 1,
        "normalize_weights": variant.normalize_weights,
        "weight_in_norm": "normalized_weights" in has and not module.normalized_weights,
        "norm_eps": variant.norm_eps,
        "cos_eps": variant.cos_eps,
        "exact_two": exact_two,
        "detach": explanation(module, has),
        "out_dtype": out_dtype,
        "backend": backend,
    }
    if isinstance(layer, nn.Linear):
        y = bcos_linear(x, layer.weight, layer.bias, **options)
    else:
        y = bcos_conv2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups,
            padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
    return y / module.scale if variant.scaled else y


def exponent(module: nn.Module, has: frozenset[str]) -> tuple[float | Tensor, bool]:
    """``(b, exact_two)``; B-cosification learns b + 2, or b clamped above 1."""
    if "b_loss" in has and module.b_loss:
        return module.b + 2, False
    b = module.b
    if "clamping" in has and module.clamping:
        # exactly 1 is compared before the clamp: there the layer is plain
        return torch.where(b == 1, b.detach(), b.clamp(1 + 1e-6)), True
    return b, True


def explanation(module: nn.Module, has: frozenset[str]) -> bool | MutableMapping:
    """The explanation mode: a bool, or the mapping that the backward reads."""
    return module.dynamic_multiplication.state if "dynamic_multiplication" in has else bool(module.detach)


def is_candidate(module: nn.Module) -> bool:
    """Whether the module looks like a B-cos layer: an exponent, a linear part and an explanation mode."""
    own = vars(module)
    return (
        "_modules" in own  # its own constructor has come that far
        and not isinstance(module, BcosLayer)
        and ("b" in own or "b" in module._parameters or "b" in module._buffers)
        and ("linear" in module._modules or isinstance(module, (nn.Conv2d, nn.Linear)))
        and ("detach" in own or "dynamic_multiplication" in module._modules)
    )


def objection(module: nn.Module) -> str | None:
    """Why a candidate is none of the published layers, as far as its structure tells; or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module"
    if "forward" in vars(module):
        return "its forward was assigned on the instance"
    if found := overrides(type(module), MATHEMATICS):
        return found
    layer = weighted(module)
    if layer is None:
        return f"its .linear is {type(module._modules['linear']).__name__}, neither nn.Conv2d nor nn.Linear"
    extra = set(module._modules) - {"linear", "dynamic_multiplication"}
    extra |= (module._parameters.keys() | module._buffers.keys()) - {"b", "scale"}
    if layer is module:
        extra -= {"weight", "bias"}
    if extra:
        return f"it also holds {', '.join(sorted(extra))}"
    if "dynamic_multiplication" in module._modules:
        state = getattr(module.dynamic_multiplication, "state", None)
        if not isinstance(state, MutableMapping) or "fixed_weights" not in state:
            return "its dynamic_multiplication has no state with the key 'fixed_weights'"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not initialised yet"
    if layer is not module and (found := overrides(type(layer), ("forward", "_conv_forward"))):
        return f"its .linear: {found}"
    if "forward" in vars(layer):
        return "its .linear.forward was assigned on the instance"
    return None


def overrides(kind: type, names: tuple[str, ...]) -> str | None:
    """The override of the first of ``names`` that a class makes over another class outside of torch."""
    for name in names:
        definers = [c for c in kind.__mro__ if name in vars(c) and c.__module__.partition(".")[0] != "torch"]
        titles = [c.__name__ for c in definers]
        for title in titles[:-1]:
            if title not in EXTENSIONS or titles.count(title) > 1:
                return f"class {title} overrides {name}"
    return None


def defining_class(kind: type, name: str) -> type:
    """The class whose definition of ``name`` an instance of ``kind`` finds."""
    return next(c for c in kind.__mro__ if name in vars(c))


def changed(module: nn.Module, variant: Variant) -> str | None:
    """Why the module's own forward must run now, after a change to it; None while the variant holds."""
    replaced = vars(module).get("calc_patch_norms")
    if replaced is not None and not is_own_slow_norm(module, replaced):
        return "its calc_patch_norms was assigned on the instance"
    layer = weighted(module)
    if layer is not module:
        if layer is None or type(layer).forward is not variant.linear_class.forward or "forward" in vars(layer):
            return "its .linear was replaced"
        if not vars(layer).get("use_weight_norm", True) or layer._parameters.get("scale") is not None:
            return "its .linear scales the weights"
    if torch_module._has_any_global_hook():
        return "a global module hook wants to see its parts"
    for name, child in module._modules.items():
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
            return f"its .{name} has a hook"
    return _unusual_exponent(module, variant.attributes)


def is_own_slow_norm(module: nn.Module, method) -> bool:
    """Whether an instance's ``calc_patch_norms`` is the layer's own way to handle dilation."""
    slow = getattr(type(module), "_calc_patch_norms_slow", None)
    return isinstance(method, MethodType) and method.__func__ is slow


def _unusual_exponent(module: nn.Module, has: frozenset[str]) -> str | None:
    b = module.b
    if isinstance(b, Tensor):
        return None if b.numel() == 1 and b.is_floating_point() else "its b is not one floating-point value"
    if "clamping" in has and module.clamping:
        return "its b is clamped and no tensor"
    if "b_loss" in has and module.b_loss:
        b = b + 2
    return None if isinstance(b, Real) and 1 <= b < math.inf else f"its b={b!r} is not a float of at least 1"


def unparametrized(kind: type, module: nn.Module) -> type:
    """The class below the one that ``torch.nn.utils.parametrize`` puts on a module."""
    return kind.__mro__[1] if parametrize.is_parametrized(module) else kind
