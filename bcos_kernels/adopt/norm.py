"""Reads a published norm at every call: its present values, and any reason why its own forward must run.

What its code does around the formula is done here as there: the count of batches and the running variance. Which dtype
and memory format come out is not derived but seen, once for each kind of call, from the module's own forward on a small
input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..core import _torch, dispatch, extension, plans
from ..core.checks import autocast_dtype
from ..core.device import fields_of
from ..norm import NORM, Call, Inputs, Outputs, Spec, functional
from ..norm.call import of
from ..transform.repeated import held
from . import published
from .kind import Kind
from .norm_code import TENSORS, Code, Variant, read
from .published import Theirs

__all__ = ["KIND", "VENDOR", "Fit", "find", "is_candidate", "repeat", "run"]

VENDOR = True
"""Whether norms whose own code calls PyTorch's fused norm outside of the explanation mode keep to it there. With False
our kernels serve them, with the same numbers: this is the switch for whichever is faster."""

NORMS = (_torch.NormWithStatistics, nn.GroupNorm, nn.LayerNorm)


class Fit(NamedTuple):
    """How calls of one kind are served."""

    variant: Variant
    late: bool = False
    """Whether the backward decides about the explanation mode."""
    frozen: bool = False
    """Whether the variance may be a constant: by the forward of an early norm, by the backward of a late one."""
    dtype: torch.dtype | None = None
    """Of the output."""
    order: tuple[int, ...] | None = None
    """The output's dimensions from the outermost in memory to the innermost; None where our kernels give it anyway."""


Found = tuple[Fit, Tensor | None, Tensor | None, Tensor | None]
"""How one call is served: a fit, and the weight, the bias and the running variance of the norm."""


def is_candidate(module: Theirs) -> bool:
    """Whether the module looks like a norm with an explanation mode, or is what one was converted to."""
    own = vars(module)
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "")  # all that is left of its class
        return "Norm" in name and ("Uncentered" in name or name.startswith("Detachable"))
    return isinstance(module, nn.SyncBatchNorm) or (
        isinstance(module, NORMS) and ("detach" in own or "dynamic_multiplication" in module._modules)
    )


def _code(module: Theirs) -> Code:
    return published.code((type(module), type(module._modules.get("dynamic_multiplication"))), read)


def find(module: Theirs, x: Tensor | None = None, backend: str | None = None) -> Found | str | None:
    """How our kernels serve a call; or the reason why the norm's own forward must run; None where it is the better one.

    A compiler fuses the norm's own operators with their neighbours, and a transform must see them.
    """
    if x is not None and _torch.is_followed():
        return None
    own = module.__dict__
    parts = own["_modules"]
    code = _code(module)
    variant = code.variant
    if variant.__class__ is str:
        return variant
    for name in code.own:
        if name in own:
            return f"its {name} was assigned on the instance"
    if parts and (reason := published.changed_parts(module) or published.changing(module)) is not None:
        return reason
    if code.late:
        mode = parts["dynamic_multiplication"]
        if (reason := published.changed_mode(mode)) is not None:
            return reason
        frozen = bool(mode.is_in_explanation_mode) if variant.vendor else True  # the backward decides
    else:
        frozen = bool(module.detach)
    if x is None:
        return _unserved(_call(module, (Fit(variant), None, None, None)), backend) or (Fit(variant), None, None, None)
    if variant.vendor and VENDOR and not frozen:
        return None
    mean = var = None
    try:
        weight, bias = held(module, "weight"), held(module, "bias")
        if variant.runs:
            var = held(module, "running_var")
            mean = variant.counts and held(module, "running_mean")
        key = (
            x.shape, x.stride(), x.dtype, x.device, x.__class__, autocast_dtype(x.device.type), frozen, own["training"],
            weight if weight is None else (weight.shape, weight.dtype, weight.device, weight.__class__),
            bias if bias is None else (bias.shape, bias.dtype, bias.device, bias.__class__),
            var if var is None else (var.shape, var.dtype, var.device, var.__class__, var.requires_grad), mean is None,
            code.settings(module), backend, dispatch.FORCED,
        )  # fmt: skip
        fit = code.fitting.get(key)
    except (AttributeError, RuntimeError, TypeError) as error:  # an attribute is gone, or is not what it should be
        return f"its input or an attribute is unusual: {error}"
    if fit is None:
        fit = plans.keep(code.fitting, key, _fit(module, x, code, frozen, backend))
    return fit if isinstance(fit, str) else (fit, weight, bias, var)


def run(
    module: Theirs, x: Tensor, found: Found, out_dtype=None, backend: str | None = None, paired: bool = False
) -> Tensor:
    """``module(x)``, computed by the fused kernels with the values that the module holds now."""
    (variant, *_, order), weight, bias, var = found
    shape, (detach, options) = None, _options(module, x, found[0], out_dtype, backend, paired)
    if variant.over == "token" and len(module.normalized_shape) > 1:
        shape, first = x.shape, -len(module.normalized_shape)
        x, weight, bias = x.flatten(first), _flat(weight), _flat(bias)
    y = _updating(module, variant, var, lambda var: functional.norm(x, weight, bias, None, var, detach, options))
    y = y if shape is None else y.view(shape)
    y = y if order is None else _stored(y, order)
    return y if shape is None and order is None else _torch.result(y)


def _options(module: Theirs, x: Tensor, fit: Fit, out_dtype, backend: str | None, paired: bool) -> tuple:
    """The explanation mode and the options of the functional norm."""
    variant, late, frozen, dtype, _ = fit
    groups = module.num_groups if variant.over == "group" else 1
    detach: bool | MutableMapping = module._modules["dynamic_multiplication"].state if late and frozen else frozen
    dtype = out_dtype if out_dtype is x.dtype else dtype
    return detach, (variant.over, groups, variant.centered, float(module.eps), paired, dtype, backend)


def _updating(module: Theirs, variant: Variant, var: Tensor | None, norm: Callable[[Tensor | None], Outputs]) -> Tensor:
    """y of ``norm``, of the running variance ``var`` outside of training; in training ``var`` is updated."""
    if not variant.runs:
        return norm(None).y
    if not module.training:
        return norm(var).y
    momentum, kept = _to_update(module, var, variant.counts)
    try:
        y, _, found = norm(None)
    except Exception as error:
        if _torch.ends_recomputation(error):  # which published code meets behind its update
            with torch.no_grad():
                _update(kept, momentum, norm(None).var)
        raise
    _update(kept, momentum, found)
    return y


def repeat(module: Theirs, x: Tensor, out_dtype=None, backend: str | None = None) -> Tensor | None:
    """``module(x)`` where all that decides about the call reads as in a call before; None where it must be read anew.

    What decides is in the key, and nothing of the module is kept. It takes a fraction of the time of :func:`find`
    and :func:`run`, for norms over the batch, groups or positions with the early explanation mode.
    """
    own = module.__dict__
    if _C is None or own["_modules"]:
        return None
    classes = type(module), _NO_MODE
    code = published.CODES.get(classes)
    if code is None or not _C.are_held(*code.watched_apart):
        code = published.code(classes, read)
    parameters, buffers, settings = own["_parameters"], own["_buffers"], (out_dtype, backend, VENDOR, dispatch.FORCED)
    key = _C.key_of_held(NORM.backends, settings, x, module, code.held, parameters, TENSORS, buffers, TENSORS)
    if key is None:
        return None
    if key in code.plans:
        plan = code.plans[key]
    else:
        plan = plans.keep(code.plans, key, _direct_plan(module, x, code, out_dtype, backend))
    if plan is None:
        return None
    weight, bias = parameters["weight"], parameters["bias"]
    var = buffers["running_var"] if code.variant.runs else None
    return _updating(module, code.variant, var, lambda var: functional.planned(plan, x, weight, bias, None, var))


_C: Any = extension.load()[0]
_NO_MODE = type(None)


def _direct_plan(module: Theirs, x: Tensor, code: Code, out_dtype, backend: str | None) -> functional.Plan | None:
    """The plan of a call that :func:`repeat` can serve; else None."""
    found = find(module, x, backend)
    if found is None or isinstance(found, str) or found[0].order is not None or not code.is_held(module):
        return None
    fit, weight, bias, var = found
    given = var if fit.variant.runs and not module.training else None
    return functional.direct_plan((x, weight, bias, None, given), *_options(module, x, fit, out_dtype, backend, False))


def _flat(t: Tensor | None) -> Tensor | None:
    return t if t is None else t.flatten()


def _to_update(module: Theirs, var: Tensor | None, counts: bool) -> tuple[Any, Tensor | None]:
    """The momentum of this call in training, and the running variance if it is to be updated."""
    momentum = module.momentum
    if not counts:
        return momentum, var
    if not module.track_running_stats:
        return momentum, None
    count = held(module, "num_batches_tracked")
    if count is not None:
        count.add_(1)
        momentum = 1.0 / float(count) if momentum is None else momentum
    return 0.0 if momentum is None else momentum, var


def _update(kept: Tensor | None, momentum: Any, found_var: Tensor) -> None:
    """Moves the running variance towards that of a batch."""
    if kept is not None:
        kept.mul_(1 - momentum).add_(found_var, alpha=momentum)


# once for each kind of call


def _fit(module: Theirs, x: Tensor, code: Code, frozen: bool, backend: str | None) -> Fit | str:
    """How a call is served, or the reason why the norm's own forward must run."""
    variant: Variant = code.variant
    values = {name: held(module, name) for name in code.tensors}
    reason = _misfit(module, x, variant, values)
    if reason is not None:
        return reason
    small = _small(x, len(module.normalized_shape) if variant.over == "token" else 0)
    try:
        with torch.no_grad():
            y = published.origin(type(module)).forward(_twin(module, values), small)
    except Exception as error:  # its own, which it shall raise itself
        return f"its own forward raises {type(error).__name__} on such an input"
    if y.shape != small.shape or y.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
        return f"its output has the shape {tuple(y.shape)} and the dtype {y.dtype}"
    spec = Spec(variant.op_over, getattr(module, "num_groups", 1), variant.centered, float(module.eps), False, y.dtype)
    flat = x.reshape(-1, math.prod(module.normalized_shape)) if variant.over == "token" else x
    given = values.get("running_var") if not module.training else None
    inputs = Inputs(flat, values["weight"], values["bias"], None, given)
    usual = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    given_order = tuple(range(x.dim())) if variant.over == "token" else _order(small)
    order = None if usual and _order(y) == given_order else _order(y)
    return _unserved(of(inputs, spec), backend) or Fit(variant, code.late, frozen, y.dtype, order)


def _misfit(module: Theirs, x: Tensor, variant: Variant, values: dict[str, Tensor | None]) -> str | None:
    """What rules our kernels out, although the norm's own forward may compute something."""
    if not x.is_floating_point() or x.layout != torch.strided:
        return f"its input is {x.dtype}, {x.layout}: a dense tensor of a floating-point dtype is needed"
    if type(x) not in (Tensor, nn.Parameter):
        return f"its input is of class {type(x).__name__}"
    if not x.numel():
        return "its input is empty"
    shape: tuple[int, ...] = (1,)
    if variant.over == "token":
        shape = tuple(module.normalized_shape)
        if not shape or tuple(x.shape[-len(shape) :]) != shape:
            return f"its input has the shape {tuple(x.shape)}, and its normalized_shape is {shape}"
    elif x.dim() not in variant.ranks:
        expected = " or ".join(map(str, variant.ranks))
        return f"its input has {x.dim()} dimensions, and its code is made for {expected}"
    elif variant.over != "all":
        shape = (x.shape[1],)
    for name, t in values.items():
        if t is None:
            continue
        if type(t) not in (Tensor, nn.Parameter) or tuple(t.shape) != shape or t.layout != torch.strided:
            return f"its {name} is of class {type(t).__name__} and shape {tuple(t.shape)}, not a tensor of {shape}"
        if not t.is_floating_point() or (t.dtype == torch.float64) != (x.dtype == torch.float64):
            return f"its {name} is {t.dtype} and its input {x.dtype}"
        if t.device != x.device:
            return f"its {name} is on {t.device} and its input on {x.device}"
        if name == "running_var" and t.requires_grad:
            return "its running_var requires a gradient"
    eps, groups = module.eps, getattr(module, "num_groups", 1)
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        return f"its eps={eps!r} is not a finite number of at least 0"
    if type(groups) is not int or groups < 1 or shape[0] % groups:
        return f"its num_groups={groups!r} does not divide its {shape[0]} channels"
    if variant.runs and not variant.counts and not module.training and values["running_var"] is None:
        return "it has no running_var, which its code needs outside of training"
    return None


def _small(x: Tensor, kept: int) -> Tensor:
    """A small tensor of ones with x's dtype, device and order of strides; the last ``kept`` dimensions are x's own."""
    sizes = [n if i in (1, *range(x.dim() - kept, x.dim())) else min(n, 2) for i, n in enumerate(x.shape)]
    order = _order(x)
    ones = torch.ones([sizes[i] for i in order], dtype=x.dtype, device=x.device)
    return ones.permute([order.index(i) for i in range(x.dim())])


def _twin(module: Theirs, values: dict[str, Tensor | None]) -> nn.Module:
    """A copy of the module with tensors of its own, in which its forward may count and write."""
    twin: Any = object.__new__(published.origin(type(module)))
    vars(twin).update(vars(module))
    for name in (*values, "num_batches_tracked"):
        t = values[name] if name in values else getattr(module, name, None)
        vars(twin)[name] = t if t is None else torch.ones_like(t, requires_grad=False)
    return twin


def _order(t: Tensor) -> tuple[int, ...]:
    """The dimensions from the outermost in memory to the innermost."""
    strides = t.stride()
    return tuple(sorted(range(t.dim()), key=lambda i: -strides[i]))


def _stored(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """The tensor with its dimensions in the given order in memory."""
    return t.permute(order).contiguous().permute([order.index(i) for i in range(len(order))])


def _unserved(call: Call, backend: str | None) -> str | None:
    """Why no kernel of ours serves a call: the formula in plain PyTorch would be no faster than the norm's own code."""
    forced = dispatch.asked(NORM.backends, backend)
    if forced is not None:
        unknown = [name for name in dispatch.named(forced) if name not in NORM.backends]
        return f"the backend {forced!r} has no norms" if unknown else None
    kernels = list(NORM.backends)[:-1]  # the last is the formula in plain PyTorch
    reasons = NORM.reasons(call)
    if any(not reasons[name] for name in kernels):
        return None
    there = [name for name in kernels if (name == "cpu") == (call.device == "cpu")]  # what runs on such a device at all
    return "no kernel serves it: " + "; ".join(f"{name}: {', '.join(reasons[name])}" for name in there)


def _call(module: Theirs, found: Found) -> Call:
    """The call of the smallest input that the norm takes, of its weight's dtype and on its device."""
    variant = found[0].variant
    values = {name: getattr(module, name, None) for name in ("weight", "bias", "running_var")}
    like = next((t for t in values.values() if t is not None), torch.empty(0))
    groups = getattr(module, "num_groups", 1) if variant.over == "group" else 1
    shapes = {"token": (1, math.prod(getattr(module, "normalized_shape", ()))), "all": (1, 1, 1, 1)}
    shape = shapes.get(variant.over, (1, len(like) or groups, 1, 1)[: max(variant.ranks, default=2)])
    spec = Spec(variant.op_over, groups, variant.centered, float(module.eps), False, like.dtype)
    given = variant.runs and not module.training and values["running_var"] is not None
    weight, bias = (values[name] is not None for name in ("weight", "bias"))
    return Call(
        spec=spec, x_shape=shape, dtype=like.dtype, weight=weight, bias=bias, given=given, **fields_of(like.device)
    )


def _note(module: Theirs, found: Found) -> str:
    return "outside of the explanation mode torch's own norm serves" if found[0].variant.vendor and VENDOR else ""


def _ours(module: Theirs) -> Found:
    """How a norm of this package is served, which says itself what it computes."""
    return Fit(cast(Variant, module.variant)), None, None, None


KIND = Kind(
    "norm", "norm", NORM, is_candidate, _code, find, run, _call, _ours,
    note=_note, run_paired=functools.partial(run, paired=True), repeat=repeat,
)  # fmt: skip
