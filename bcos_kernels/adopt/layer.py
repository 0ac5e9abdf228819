"""Reads a published B-cos layer at every call: its present values, and any reason why its own forward must run.

The layers of ``bcos``, of its first version, of B-cosification, of model guidance and the repositories derived from
it, and of the one-file ResNet hold the same few things under the same names.
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

from ..core import _torch, checks, extension, plans
from ..modules import COS_EPS, BcosLayer, clamped
from ..transform import TRANSFORM, Call, functional, parts
from ..transform.repeated import ASKED, HOOKS, held
from . import published
from .kind import Kind
from .layer_code import GEOMETRY, SIZES, Code, Variant, read
from .published import Theirs

__all__ = ["KIND", "find", "is_candidate", "repeat", "run", "unreadable", "weighted"]


def weighted(module: Theirs) -> Theirs:
    """The ``nn.Conv2d`` or ``nn.Linear`` that holds the weight: ``module.linear`` or the module itself; else None."""
    found = module._modules.get("linear", module)
    return found if isinstance(found, (nn.Conv2d, nn.Linear)) else None


def run(module: Theirs, x: Tensor, variant: Variant, out_dtype=None, backend: str | None = None) -> Tensor:
    """``module(x)``, computed by the fused kernels with the values that the module holds now."""
    layer = module._modules.get("linear", module)
    if layer is not module:  # whose own hooks its call has run
        _torch.set_tensors(layer)
    y = functional.transform(*_arguments(module, x, variant, out_dtype, backend))
    divisor = scale(module, variant)
    return y if divisor is None else y / divisor


def _arguments(module: Theirs, x: Tensor, variant: Variant, out_dtype=None, backend: str | None = None) -> tuple:
    """The arguments of the functional layer."""
    has, layer = variant.attributes, module._modules.get("linear", module)
    b, exact_two = exponent(module, variant)
    if isinstance(b, Tensor) and b.device != x.device:
        b = b.to(x.device)
    weight, bias, detach = held(layer, "weight"), held(layer, "bias"), explanation(module, has)
    geometry = (len(layer.kernel_size), *_CONVOLUTION(layer)) if isinstance(layer, _torch.Convolution) else ()
    max_out = module.max_out if "max_out" in has else 1
    weight_in_norm = "normalized_weights" in has and not module.normalized_weights
    if out_dtype is None and "calc_patch_norms" in vars(module):
        out_dtype = _dtype_with_slow_norm(x, b)
    options = (
        max_out, variant.normalize_weights, weight_in_norm, variant.norm_eps, variant.cos_eps, exact_two, out_dtype,
        backend,
    )  # fmt: skip
    return x, weight, bias, b, detach, geometry, options


def repeat(module: Theirs, x: Tensor, out_dtype=None, backend: str | None = None) -> Tensor | None:
    """``module(x)`` where all that decides about the call reads as in a call before; None where it must be read anew.

    What decides is in the key, and neither the module nor its tensors are kept. It takes a fraction of the time of
    :func:`find` and :func:`run`, for layers whose b is a number and whose explanation mode is the early one.
    """
    if _C is None:
        return None
    parts = module.__dict__["_modules"]
    layer = parts.get("linear", module)
    if len(parts) != (layer is not module):
        return None
    classes = type(module), type(layer), _NO_MODE
    code = published.CODES.get(classes)
    if code is None or not _C.are_held(*code.watched_apart):
        code = published.code(classes, read)
    (names, inner), parameters = code.held, layer.__dict__["_parameters"]
    settings = out_dtype, backend, _torch.GLOBAL_HOOKS  # a dict with something in it has no key
    unchanged = () if layer is module else _UNCHANGED
    return plans.repeated(
        code.plans, lambda: _kernels(module, layer, x, code, out_dtype, backend), code.watched_beside,
        TRANSFORM.backends, settings, x, module, names, layer, inner, layer, unchanged, *ASKED, parameters, _INPUTS,
    )  # fmt: skip


_C: Any = extension.load()[0]
_INPUTS = "weight", "bias"
_NO_MODE = type(None)
_UNCHANGED = ("_modules", *HOOKS)
"""What is empty in a part that has neither hooks nor a parametrization: a dict with something in it has no key."""


def _kernels(module: Theirs, layer: Theirs, x: Tensor, code: Code, out_dtype, backend: str | None) -> Any:
    """What serves a call that :func:`repeat` can serve; else None."""
    variant = find(module, x, backend)
    if isinstance(variant, str) or not code.is_held(module, layer) or scale(module, variant) is not None:
        return None
    plan = functional.direct_plan(*_arguments(module, x, variant, out_dtype, backend))
    return None if plan is None else plan.kernels


def _dtype_with_slow_norm(x: Tensor, b) -> torch.dtype | None:
    """The output's dtype of a layer for dilated patches; None where it is that of other layers.

    The layer's norm is a convolution, which autocast computes in half precision. Only powers on a GPU are in fp32 then,
    and at b = 2 there is none.
    """
    if x.dtype == torch.float64 or (isinstance(b, Tensor) and b.dim()):
        return None
    has_power = isinstance(b, Tensor) or b != 2
    return None if has_power and x.device.type != "cpu" else checks.autocast_dtype(x.device.type)


def _read_together(*names: str):
    """A function that reads attributes of a module in one step, or one by one where Dynamo compiles it."""
    read = attrgetter(*names)
    return lambda module: (
        tuple(getattr(module, name) for name in names) if torch.compiler.is_compiling() else read(module)
    )


_CONVOLUTION = _read_together("stride", "padding", "dilation", "groups", "padding_mode")
"""Reads the window, the groups and the padding mode of a convolution, in the order of the functional layer."""


def exponent(module: Theirs, variant: Variant) -> tuple[float | Tensor, bool]:
    """``(b, exact_two)``; in B-cosification the exponent is b + 2, or b clamped above 1."""
    has = variant.attributes
    if "b_loss" in has and module.b_loss:
        return module.b + 2, False
    b = module.b
    if "clamping" in has and module.clamping:
        return clamped(b), variant.exact_two
    return b, variant.exact_two


def scale(module: Theirs, variant: Variant) -> Any:
    """What the output is divided by; None for nothing."""
    return module.scale if variant.scaled and (variant.scaled_at_one or module.b != 1) else None


def explanation(module: Theirs, has: frozenset[str]) -> bool | MutableMapping:
    """The explanation mode: a bool (early mode), or the mapping that the backward reads (late mode)."""
    return module.dynamic_multiplication.state if "dynamic_multiplication" in has else bool(module.detach)


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like a B-cos layer: an exponent, a linear part and an explanation mode."""
    own = vars(module)
    return (
        not isinstance(module, BcosLayer)
        and ("b" in own or "b" in module._parameters or "b" in module._buffers)
        and ("linear" in module._modules or isinstance(module, (nn.Conv2d, nn.Linear)))
        and ("detach" in own or "dynamic_multiplication" in module._modules)
    )


def unreadable(module: Theirs) -> str | None:
    """Why the part that holds the weight of a candidate can tell no formula; None where it can."""
    layer = weighted(module)
    if layer is None:
        return f"its .linear is {type(module._modules['linear']).__name__}, neither nn.Conv2d nor nn.Linear"
    return "its weight is not initialised yet" if isinstance(layer, nn.modules.lazy.LazyModuleMixin) else None


def _readable_code(module: Theirs) -> Code | str:
    """The code of a candidate's classes, or the reason why it tells nothing."""
    return unreadable(module) or _code(module)


def _code(module: Theirs) -> Code:
    parts = module._modules
    classes = type(module), type(parts.get("linear", module)), type(parts.get("dynamic_multiplication"))
    return published.code(classes, read)


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Variant | str:
    """The variant that the module computes now; or the reason why its own forward must run for the input x."""
    layer, code = module._modules.get("linear", module), _code(module)
    if isinstance(code.variant, str):
        return code.variant
    if code.convolves and x is not None and x.dim() != 4:
        return f"its input has {x.dim()} dimensions, and its norm expects 4"
    weight = weight_of(module, layer, x)
    return weight if isinstance(weight, str) else unfitting(module, layer, code, weight) or code.variant


def weight_of(module: Theirs, layer: Theirs, x: Tensor | None) -> Tensor | str:
    """The weight, read once, because reading a parametrized one computes it.

    Or a reason against this call that does not depend on the layer's code: a hook, a parametrization or a dtype.
    """
    if (reason := published.changed_parts(module, weighted=layer) or published.changing(layer)) is not None:
        return reason
    weight = held(layer, "weight")
    tensor = weight if x is None else x
    if not tensor.is_floating_point():
        return f"{'its weight' if x is None else 'its input'} is {tensor.dtype}, not of a floating-point dtype"
    if x is not None and (x.is_nested or x.layout != torch.strided):
        return f"its input is {'nested' if x.is_nested else f'of layout {x.layout}'}, not a dense tensor"
    if x is not None and _torch.is_distributed((x, weight)):
        return "its input or its weight is a DTensor, which knows the operators of torch alone"
    return weight


def unfitting(module: Theirs, layer: Theirs, code: Code, weight: Tensor) -> str | None:
    """What the instance holds that makes its published code compute something other than its variant."""
    method = None if code.slow_norm is None else getattr(module, "calc_patch_norms", None)
    slow = is_own_slow_norm(module, method, code.slow_norm)
    if (reason := published.assigned(module, code.own - {"calc_patch_norms"} if slow else code.own)) is not None:
        return reason
    if layer is not module:
        held = vars(layer)
        if (reason := published.assigned(layer, code.linear_own, "linear")) is not None:
            return reason
        if code.scales_weights and not (held["use_weight_norm"] and layer.scale is None):
            return "its .linear scales the weights"
    if code.late and (reason := published.changed_mode(module._modules["dynamic_multiplication"])) is not None:
        return reason
    if "normalized_weights" in code.reads and not module.normalized_weights:
        if module.max_out != 1:
            return "its norm has a ‖w‖ for each filter, but its output keeps only one of several filters"
        if layer.bias is not None:
            return "its norm has a ‖w‖ beside a bias, and no kernel is as exact there as its own operators"
    if "detach_output" in code.reads and module.detach_output:
        return "its detach_output makes a constant of its output in explanation mode"
    if code.variant.exponents and not (type(module.b) in (int, float) and module.b in code.variant.exponents):
        return f"its b={module.b!r} is not one of {code.variant.exponents}: for others its code has another formula"
    usual = type(module.b) is int and module.b >= 1 and "clamping" not in code.reads
    reason = None if usual else unusual_exponent(module, code.reads, weight)
    return reason or _sizes_differ(module, layer, code, slow, weight.shape)


def is_own_slow_norm(module: Theirs, method, slow_norm) -> bool:
    """Whether the ``calc_patch_norms`` of an instance is the layer's own method for dilated patches."""
    return isinstance(method, MethodType) and method.__self__ is module and method.__func__ is slow_norm


def unusual_exponent(module: Theirs, has: frozenset[str], weight: Tensor) -> str | None:
    """Why our kernels cannot take the layer's exponent; None where they can."""
    b = module.b
    if "b_loss" in has and type(module.b_loss) is not bool:
        return f"its b_loss={module.b_loss!r} is neither True nor False, and its code has another formula for that"
    if isinstance(b, Tensor):
        if b.numel() != 1 or b.dim() > 1 or not b.is_floating_point():
            return "its b is not one floating-point value"
        if b.dim() and b.dtype != weight.dtype:
            return f"its b of shape (1,) gives the output dtype {b.dtype}"
        return None
    if "clamping" in has and module.clamping:
        return "its b is clamped but is not a tensor"
    if "b_loss" in has and module.b_loss:
        b = b + 2
    return None if isinstance(b, Real) and 1 <= float(b) < math.inf else f"its b={b!r} is not a float of at least 1"


_GEOMETRY = attrgetter(*GEOMETRY)


def _sizes_differ(module: Theirs, layer: Theirs, code: Code, slow: bool, shape: torch.Size) -> str | None:
    """:func:`_difference`, remembered for the sizes that were met before."""
    if torch.compiler.is_compiling():  # the compiled code does not check again
        return _difference(module, layer, code, slow, shape)
    key = (code.sizes(module), shape, _GEOMETRY(layer) if code.convolves else (), slow)
    try:
        return code.fitting[key]
    except KeyError:
        return plans.keep(code.fitting, key, _difference(module, layer, code, slow, shape))
    except TypeError:  # a list among the sizes has no hash
        return _difference(module, layer, code, slow, shape)


def _difference(module: Theirs, layer: Theirs, code: Code, slow: bool, shape: torch.Size) -> str | None:
    """Where an attribute that the layer's code reads contradicts its linear part; None if they agree."""
    reads = code.reads
    max_out = module.max_out if "max_out" in reads else 1
    if type(max_out) is not int or max_out < 1 or shape[0] % max_out:
        return f"its max_out={max_out!r} does not divide the {shape[0]} filters"
    expected: dict[str, object] = {"out_channels": shape[0] // max_out, "out_features": shape[0] // max_out}
    if isinstance(layer, nn.Conv2d):
        kernel = tuple(shape[2:])
        expected |= {"in_channels": shape[1] * layer.groups, "kernel_size": kernel, "patch_size": math.prod(kernel)}
        expected |= {"kssq": math.prod(kernel), "stride": layer.stride, "padding": layer.padding}
        expected |= {"groups": layer.groups, "dilation": layer.dilation}
    for name in sorted(reads.intersection(SIZES, expected) - {"max_out"}):
        value = getattr(module, name)
        if published.pair(value) != published.pair(expected[name]):
            return f"its {name}={value!r} contradicts its weight and its .linear, which have {expected[name]!r}"
    if not isinstance(layer, nn.Conv2d):
        return None
    if published.pair(layer.dilation) != (1, 1) and not slow:
        return f"its norm ignores dilation={layer.dilation}"
    if slow and max_out != 1:
        return "its norm for dilation has a channel for each filter, but its output keeps only one of several filters"
    if "groups" not in reads and layer is not module and layer.groups != 1:
        return f"its norm ignores groups={layer.groups}"
    if layer.padding_mode != "zeros":
        if not code.pads:
            return f"its linear part ignores padding_mode={layer.padding_mode!r}"
        kept = [amount for amount in reversed(layer.padding) for _ in range(2)]
        if isinstance(layer.padding, tuple) and list(layer._reversed_padding_repeated_twice) != kept:
            return f"the padding={layer.padding} of its .linear was changed after it was made"
    return None


# the layer as a kind of module


def _ours(module: Theirs) -> Variant | str | None:
    """The variant of a layer of :mod:`bcos_kernels.modules`, or why a subclass may compute another; else None."""
    if not isinstance(module, BcosLayer):
        return None
    own = Variant(module.has_unit_filters(), module.norm_eps, COS_EPS, False, frozenset({"max_out"}))
    changed = "calc_patch_norms" in vars(module) and "its calc_patch_norms was assigned on the instance"
    linear = module._modules["linear"]
    adapted = not parts.is_product(linear, module.linear_kinds) and f"its .linear is {type(linear).__name__}"
    return (
        _overridden(type(module)) or changed or adapted or published.changed_parts(module, ("linear",), linear) or own
    )


def _overridden(cls: type) -> str | None:
    """The reason why a subclass of our own layers may compute another formula; None if it does not."""
    for name in ("forward", "forward_impl", "calc_patch_norms"):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if owner is not None and owner.__module__ != BcosLayer.__module__:
            return f"class {owner.__name__} overrides {name}"
    return None


def _call(module: Theirs, variant: Variant) -> Call:
    """The call of a small input that the layer takes, of its weight's dtype and on its device."""
    layer: Any = module._modules.get("linear", module)
    size = [1, layer.weight.shape[1]]
    if isinstance(layer, _torch.Convolution):
        pads = (0,) * len(layer.stride) if isinstance(layer.padding, str) else layer.padding
        size = [1, layer.in_channels]
        size += (d * (k - 1) + 1 + p for d, k, p in zip(layer.dilation, layer.kernel_size, pads, strict=True))
    x = torch.empty(size, dtype=layer.weight.dtype, device=layer.weight.device)
    x, weight, bias, b, _, geometry, options = _arguments(module, x, variant)
    return functional.plan(x, weight, bias, b, False, geometry, options).call


KIND = Kind(
    "layer", "B-cos layer", TRANSFORM, is_candidate, _readable_code, find, run, _call, _ours,
    measurable=True, repeat=repeat, again=None if _C is None else _C.again,
)  # fmt: skip
