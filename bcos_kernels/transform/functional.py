"""Turns the arguments of a public function into a call of the op: checks, padding, casts and the choice of backend."""

from __future__ import annotations

from contextlib import nullcontext
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import tally
from ..core import _torch, autograd, device, dispatch
from . import checks, reference
from .call import Call
from .op import REFERENCE, TRANSFORM
from .spec import Inputs, Spec

__all__ = ["transform"]


class Plan(NamedTuple):
    """All that follows from the shapes, dtypes and options of the arguments, and not from the values in the tensors."""

    call: Call
    backend: str
    """The backends, as :meth:`bcos_kernels.core.op.Op.choose` names them."""
    padding: tuple[tuple[int, int, int, int], str] | None
    """``((top, bottom, left, right), padding_mode)`` where x must be padded before the kernels run; they themselves pad
    only with zeros, and alike on both sides."""
    casts: tuple[torch.dtype, torch.dtype] | None
    """The dtypes to which autocast casts x and weight; None outside of autocast."""
    unbatched: bool
    weight_in_norm: bool


_PLANS: dict[tuple, Plan] = {}
_MOST_PLANS = 4096


def transform(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Tensor:
    """Computes both public layers; ``geometry`` is empty for the linear one."""
    arguments = (x, weight, bias, b)
    if has_torch_function_variadic(*arguments) and _torch.overloads(arguments):  # subclasses of Tensor keep their type
        return handle_torch_function(transform, arguments, *arguments, detach, geometry, options)
    plan = _plan(x, weight, bias, b, detach, geometry, options)
    call, late, normed, gain = plan.call, checks.late_mode(detach), None, None
    spec = call.spec
    if plan.unbatched:
        x = x.unsqueeze(0)
    if plan.padding is not None:
        x, normed = _pad(x, *plan.padding)
    if plan.casts is not None:
        x, weight, bias, normed = _cast(x, weight, bias, normed, *plan.casts)
    if plan.weight_in_norm:
        weight, bias, gain = _weight_in_norm(weight, bias, not spec.unit)
    rows = spec.is_linear and x.dim() != 2
    inputs = Inputs(x.reshape(-1, x.shape[-1]) if rows else x, weight, bias, b if spec.b is None else None)
    with nullcontext() if plan.casts is None else torch.autocast(x.device.type, enabled=False):
        if plan.backend == REFERENCE.name:
            if options[-1] is None and not torch.compiler.is_compiling():  # counted unless the caller asked for it
                noun = "bcos_linear" if spec.is_linear else "bcos_conv2d"
                tally.plain(noun, "the backend 'reference' serves it")
            y = reference.transform(inputs, spec, late, normed)
        else:
            (y,) = autograd.apply(TRANSFORM, inputs, call, late, plan.backend)
        y = y.view(*x.shape[:-1], y.shape[-1]) if rows else y
        y = y if gain is None else y * gain.to(y.dtype)
    return y.squeeze(0) if plan.unbatched else y


def _plan(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Plan:
    """The plan of a call. It is made, and the arguments are checked, once for all calls with the same key."""
    if torch.compiler.is_compiling():  # sizes may be symbolic there
        return _make_plan(x, weight, bias, b, detach, geometry, options)
    values = ((b.shape, b.dtype, b.device) if isinstance(b, Tensor) else b, *geometry, *options)
    try:
        key = (
            x.shape, x.dtype, x.device, x.layout, weight.shape, weight.dtype, weight.device, weight.layout,
            bias if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
            checks.autocast_dtype(x.device.type), dispatch.FORCED, *TRANSFORM.backends.values(), detach is True, values,
            # Types are part of the key because True, 1 and 1.0 are equal, but not all of them are allowed.
            type(detach), type(b), *map(type, values), *[type(v) for t in values if isinstance(t, tuple) for v in t],
        )  # fmt: skip
        plan = _PLANS.get(key)
    except (AttributeError, TypeError):  # not a tensor, or without a hash, as a list or a symbolic size
        return _make_plan(x, weight, bias, b, detach, geometry, options)
    if plan is None:
        if _torch.is_traced():  # a trace would record the checks, and sizes are tensors in it
            with _torch.unrecorded():
                return _make_plan(x, weight, bias, b, detach, geometry, options)
        plan = _make_plan(x, weight, bias, b, detach, geometry, options)
        if len(_PLANS) >= _MOST_PLANS:
            _PLANS.clear()
        _PLANS[key] = plan
    return plan


def _make_plan(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Plan:
    """Checks every argument and chooses the backend."""
    max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype, backend = options
    if geometry:
        checks.tensors(x, weight, bias, 4)
        stride, pads, dilation, groups = checks.conv2d_geometry(x, weight, *geometry)
        checks.filters(weight, bias, max_out, groups)
        zero_padded = geometry[-1] == "zeros" or not any(pads)
        padding = None if zero_padded and pads[::2] == pads[1::2] else (pads, geometry[-1])
        shape = _padded_shape(x, pads, zero_padded)
        convolution = {"stride": stride, "padding": (pads[0], pads[2]), "dilation": dilation, "groups": groups}
    else:
        checks.tensors(x, weight, bias, 2)
        checks.filters(weight, bias, max_out)
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}: (..., {weight.shape[1]}) is needed for this weight")
        shape = (prod(x.shape[:-1]), x.shape[-1])
        zero_padded, padding, convolution = True, None, {}
    exponent, _ = checks.exponent(b, x)
    late = checks.late_mode(detach)
    checks.flag("normalize_weights", normalize_weights)
    if checks.flag("weight_in_norm", weight_in_norm):
        checks.single_filters(max_out)
    casts, dtype, weight_dtype, y_dtype = _dtypes(x, weight, exponent)
    spec = Spec(
        **convolution,
        max_out=max_out,
        b=exponent,
        unit=normalize_weights != weight_in_norm,
        norm_eps=checks.norm_epsilons(norm_eps),
        cos_eps=checks.epsilon("cos_eps", cos_eps),
        exact_two=checks.flag("exact_two", exact_two),
        detach=late is None and detach,
        out_dtype=checks.out_dtype(out_dtype, dtype) or y_dtype,
    )
    call = Call(
        spec, x.device.type, shape, tuple(weight.shape), dtype, weight_dtype, bias is not None, zero_padded,
        arch=device.architecture_of(x.device),
    )  # fmt: skip
    backend = TRANSFORM.choose(call, backend)
    unbatched = geometry != () and x.dim() == 3
    return Plan(call, backend, padding, (dtype, weight_dtype) if casts else None, unbatched, weight_in_norm)


def _padded_shape(x: Tensor, pads: tuple[int, int, int, int], zero_padded: bool) -> tuple[int, ...]:
    """The shape of the op's x after :func:`_pad`."""
    top, bottom, left, right = pads
    *batch, channels, height, width = x.shape
    more = (bottom - top, right - left) if zero_padded else (top + bottom, left + right)
    return *(batch or (1,)), channels, height + more[0], width + more[1]


def _pad(x: Tensor, pads: tuple[int, int, int, int], padding_mode: str) -> tuple[Tensor, Tensor | None]:
    """Pads where symmetric zero padding is not enough.

    Returns the input of the convolution and, where it differs, the input of the norm; else None.
    """
    top, bottom, left, right = pads
    zero_padded = F.pad(x, (0, right - left, 0, bottom - top)) if (bottom, right) != (top, left) else x
    if padding_mode == "zeros" or not any(pads):
        return zero_padded, None
    return F.pad(x, (left, right, top, bottom), mode=padding_mode), zero_padded


def _dtypes(x: Tensor, weight: Tensor, exponent: float | None):
    """Whether autocast is on, and the dtypes of x, weight and y. Autocast casts as it does for nn.Conv2d.

    Only a fp32 weight stays fp32, and with it its norm and its gradient.
    """
    dtype = checks.autocast_dtype(x.device.type)
    if dtype is None or x.dtype == torch.float64:
        return dtype is not None, x.dtype, weight.dtype, x.dtype
    weight_dtype = torch.float32 if weight.dtype == torch.float32 else dtype
    return True, dtype, weight_dtype, dtype if exponent == 1 else torch.float32


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None, normed: Tensor | None, dtype, weight_dtype):
    bias, normed = None if bias is None else bias.to(weight_dtype), None if normed is None else normed.to(dtype)
    return x.to(dtype), weight.to(weight_dtype), bias, normed


def _weight_in_norm(weight: Tensor, bias: Tensor | None, normalize_weights: bool):
    """``(weight, bias, gain)`` of an equal transform whose norm has no ‖w‖; its y must be multiplied by ``gain``.

    Dividing both l and n·‖w‖ by ‖w‖ does not change the cosine and divides y = s·l by ‖w‖.
    """
    norm = reference.weight_norm(weight)
    inverse = torch.where(norm == 0, 0, 1 / torch.where(norm == 0, 1, norm))
    shape = (-1, *[1] * (weight.dim() - 1))
    if normalize_weights:
        weight = weight * inverse.square().view(shape).to(weight.dtype)
    bias = None if bias is None else bias * inverse.to(bias.dtype)
    return weight, bias, norm.view(shape[:-1])
