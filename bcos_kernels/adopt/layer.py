"""How a published B-cos layer is read: what it holds, at every call, and why its own forward must run instead.

The layers of ``bcos``, of its first version, of B-cosification, of model guidance with its descendants and of the
one-file ResNet hold the same few things under the same names.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from numbers import Real
from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..modules import BcosLayer
from ..transform import functional
from . import published
from .published import Code, Theirs, Variant

__all__ = ["is_candidate", "objection", "transform", "variant_of", "weighted"]


def weighted(module: Theirs) -> Theirs:
    """The ``nn.Conv2d`` or ``nn.Linear`` that holds the weight, ``module.linear`` or the module itself; or None."""
    found = module._modules.get("linear", module)
    return found if isinstance(found, (nn.Conv2d, nn.Linear)) else None


def transform(module: Theirs, x: Tensor, variant: Variant, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)`` by the fused layers; every value is read from the module now."""
    has, layer = variant.attributes, module._modules.get("linear", module)
    b, exact_two = exponent(module, has)
    if isinstance(b, Tensor) and b.device != x.device:
        b = b.to(x.device)
    weight, bias, detach = held(layer, "weight"), held(layer, "bias"), explanation(module, has)
    geometry = _CONVOLUTION(layer) if isinstance(layer, nn.Conv2d) else ()
    max_out = module.max_out if "max_out" in has else 1
    weight_in_norm = "normalized_weights" in has and not module.normalized_weights
    options = (
        max_out, variant.normalize_weights, weight_in_norm, variant.norm_eps, variant.cos_eps, exact_two, out_dtype,
        backend,
    )  # fmt: skip
    y = functional.transform(x, weight, bias, b, detach, geometry, options)
    return y / module.scale if variant.scaled else y


def _read_together(*names: str):
    """Reads attributes of a module in one step, in words that Dynamo knows where it compiles."""
    read = attrgetter(*names)
    return lambda module: (
        tuple(getattr(module, name) for name in names) if torch.compiler.is_compiling() else read(module)
    )


_CONVOLUTION = _read_together("stride", "padding", "dilation", "groups", "padding_mode")
"""The geometry of a convolution, as the functional layer takes it."""


def held(layer: Theirs, name: str) -> Any:
    """``layer.weight`` or ``layer.bias``, whatever it is held as; a tenth of the time where it is a parameter."""
    parameters = layer._parameters
    return parameters[name] if name in parameters else getattr(layer, name)


def exponent(module: Theirs, has: frozenset[str]) -> tuple[float | Tensor, bool]:
    """``(b, exact_two)``; B-cosification learns b + 2, or b clamped above 1."""
    if "b_loss" in has and module.b_loss:
        return module.b + 2, False
    b = module.b
    if "clamping" in has and module.clamping:
        # exactly 1 is compared before the clamp: there the layer is plain
        return torch.where(b == 1, b.detach(), b.clamp(1 + 1e-6)), True
    return b, True


def explanation(module: Theirs, has: frozenset[str]) -> bool | MutableMapping:
    """The explanation mode: a bool, or the mapping that the backward reads."""
    return module.dynamic_multiplication.state if "dynamic_multiplication" in has else bool(module.detach)


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like a B-cos layer: an exponent, a linear part and an explanation mode."""
    own = vars(module)
    return (
        "_modules" in own  # its own constructor has come that far
        and not isinstance(module, BcosLayer)
        and ("b" in own or "b" in module._parameters or "b" in module._buffers)
        and ("linear" in module._modules or isinstance(module, (nn.Conv2d, nn.Linear)))
        and ("detach" in own or "dynamic_multiplication" in module._modules)
    )


def variant_of(module: Theirs) -> Variant | str:
    """The published formula that the module's code computes, or why there is none; for candidates alone."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a compiled TorchScript module"
    if "forward" in vars(module):
        return "its forward was assigned on the instance"
    layer = weighted(module)
    if layer is None:
        return f"its .linear is {type(module._modules['linear']).__name__}, neither nn.Conv2d nor nn.Linear"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "its weight is not initialised yet"
    return published.code(module, layer).variant


def objection(module: Theirs, x: Tensor | None = None) -> Variant | str:
    """The variant by which the module is computed now, for the input x; or why its own forward must run."""
    layer = module._modules.get("linear", module)
    code = published.code(module, layer)
    if isinstance(code.variant, str):
        return code.variant
    if code.convolves and x is not None and x.dim() != 4:
        return f"its input has {x.dim()} dimensions, of which its norm expects 4"
    return changed(module, layer, x) or unfitting(module, layer, code) or code.variant


def changed(module: Theirs, layer: Theirs, x: Tensor | None) -> str | None:
    """What is unusual about a call whatever the code is: hooks inside, a strange exponent or input."""
    if torch_module._has_any_global_hook():
        return "a global module hook wants to see its parts"
    for name, child in module._modules.items():
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
            return f"its .{name} has a hook"
    if layer.training and "parametrizations" in layer._modules:
        return "its weight is parametrized: in training that may change whenever it is read"
    tensor = held(layer, "weight") if x is None else x
    if not tensor.is_floating_point():
        return f"{'its weight' if x is None else 'its input'} is {tensor.dtype}, not of a floating-point dtype"
    return None


def unfitting(module: Theirs, layer: Theirs, code: Code) -> str | None:
    """What on the instance makes published code compute another formula than its variant."""
    own, slow = vars(module), False
    for name in code.own:
        if name in own:
            slow = name == "calc_patch_norms" and is_own_slow_norm(module, own[name], code.slow_norm)
            if not slow:
                return f"its {name} was assigned on the instance"
    if layer is not module:
        held = vars(layer)
        for name in code.linear_own:
            if name in held:
                return "a method of its .linear was assigned on the instance"
        if code.scales_weights and not (held["use_weight_norm"] and layer.scale is None):
            return "its .linear scales the weights"
    if code.late:
        mode = module._modules["dynamic_multiplication"]
        if "forward" in vars(mode):
            return "the forward of its .dynamic_multiplication was assigned on the instance"
        if not isinstance(mode.state, MutableMapping) or "fixed_weights" not in mode.state:
            return "its dynamic_multiplication has no state with the key 'fixed_weights'"
    if "normalized_weights" in code.reads and not module.normalized_weights and module.max_out != 1:
        return "its norm has ‖w‖ for each filter, and its output has the largest of several"
    return unusual_exponent(module, code.reads) or _sizes_differ(module, layer, code, slow)


def is_own_slow_norm(module: Theirs, method, slow_norm) -> bool:
    """Whether an instance's ``calc_patch_norms`` is the layer's own way to handle dilation."""
    return isinstance(method, MethodType) and method.__self__ is module and method.__func__ is slow_norm


def unusual_exponent(module: Theirs, has: frozenset[str]) -> str | None:
    """What no exponent of ours is."""
    b = module.b
    if type(b) is int and b >= 1 and "clamping" not in has:
        return None
    if "b_loss" in has and type(module.b_loss) is not bool:
        return f"its b_loss={module.b_loss!r} is neither True nor False, which its code tells apart from both"
    if isinstance(b, Tensor):
        if b.numel() != 1 or b.dim() > 1 or not b.is_floating_point():
            return "its b is not one floating-point value"
        if b.dim() and b.dtype != held(module._modules.get("linear", module), "weight").dtype:
            return f"its b of shape (1,) makes the output {b.dtype}"
        return None
    if "clamping" in has and module.clamping:
        return "its b is clamped and no tensor"
    if "b_loss" in has and module.b_loss:
        b = b + 2
    return None if isinstance(b, Real) and 1 <= float(b) < math.inf else f"its b={b!r} is not a float of at least 1"


_GEOMETRY = attrgetter("stride", "padding", "dilation", "groups", "padding_mode", "_reversed_padding_repeated_twice")
"""What a convolution reads of its own, with the amounts that its other padding modes keep from when it was made."""


def _sizes_differ(module: Theirs, layer: Theirs, code: Code, slow: bool) -> str | None:
    """Whether the layer and its linear part say the same of what both hold."""
    if torch.compiler.is_compiling():  # once for all calls
        return _difference(module, layer, code, slow)
    key = (code.sizes(module), held(layer, "weight").shape, _GEOMETRY(layer) if code.convolves else (), slow)
    try:
        return code.fitting[key]
    except KeyError:
        found = code.fitting[key] = _difference(module, layer, code, slow)
        return found
    except TypeError:  # a list among the sizes
        return _difference(module, layer, code, slow)


def _difference(module: Theirs, layer: Theirs, code: Code, slow: bool) -> str | None:
    """The first attribute of the layer that its code reads and that its linear part contradicts."""
    shape, reads = tuple(held(layer, "weight").shape), code.reads
    max_out = module.max_out if "max_out" in reads else 1
    if type(max_out) is not int or max_out < 1 or shape[0] % max_out:
        return f"its max_out={max_out!r} does not divide the {shape[0]} filters"
    expected: dict[str, object] = {"out_channels": shape[0] // max_out, "out_features": shape[0] // max_out}
    if isinstance(layer, nn.Conv2d):
        kernel = shape[2:]
        expected |= {"in_channels": shape[1] * layer.groups, "kernel_size": kernel, "patch_size": math.prod(kernel)}
        expected |= {"kssq": math.prod(kernel), "stride": layer.stride, "padding": layer.padding}
        expected |= {"groups": layer.groups, "dilation": layer.dilation}
    for name in sorted(reads.intersection(published.SIZES, expected) - {"max_out"}):
        value = getattr(module, name)
        if _pair(value) != _pair(expected[name]):
            return f"its {name}={value!r} is not that of its weight and its .linear, {expected[name]!r}"
    if not isinstance(layer, nn.Conv2d):
        return None
    if _pair(layer.dilation) != (1, 1) and not slow:
        return f"its norm does not follow dilation={layer.dilation}"
    if slow and max_out != 1:
        return "its norm for dilation has a channel for each filter, and its output has the largest of several"
    if "groups" not in reads and layer is not module and layer.groups != 1:
        return f"its norm does not follow groups={layer.groups}"
    if layer.padding_mode != "zeros":
        if not code.pads:
            return f"its linear part does not follow padding_mode={layer.padding_mode!r}"
        kept = [amount for amount in reversed(layer.padding) for _ in range(2)]
        if isinstance(layer.padding, tuple) and list(layer._reversed_padding_repeated_twice) != kept:
            return f"the padding={layer.padding} of its .linear was changed after it was made"
    return None


def _pair(value) -> tuple | str:
    """One number stands for both dimensions."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * 2 if len(values) == 1 else values
