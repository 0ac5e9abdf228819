"""Turns the arguments of a public function into a call of the op: checks, padding, casts and the choice of backend."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import tally
from ..core import _torch, autograd, device, plans
from ..core.candidate import REFERENCE
from ..core.checks import autocast_dtype, flag, late_mode, out_dtype, real, without_autocast
from . import checks, reference
from .call import Call
from .op import TRANSFORM
from .spec import Inputs, Spec

__all__ = ["Plan", "direct_plan", "plan", "transform"]


# Slots are read several times in every call, in half the time of a NamedTuple's fields.
@dataclass(frozen=True, slots=True)
class Plan:
    """All that follows from the shapes, dtypes and options of the arguments, and not from the values in the tensors."""

    call: Call
    backend: str
    """The backends, as :meth:`bcos_kernels.core.op.Op.choose` names them."""
    padding: tuple[list[int], str] | None
    """The arguments of ``F.pad`` where x must be padded before the kernels run; they themselves pad only with zeros,
    and alike at both ends."""
    casts: tuple[torch.dtype, torch.dtype] | None
    """The dtypes to which x and weight are cast, as autocast does; None where they are not."""
    unbatched: bool
    lifted: bool
    """Whether a convolution with one axis is served as one with two."""
    weight_in_norm: bool
    signs: bool
    """Whether the unit filters, of one value each, are formed before the op: they are ±1, which half precision holds,
    while the product with the filter as it is would be rounded to it."""
    direct: bool
    """Whether the op takes the tensors as they are, and its y is the result."""
    kernels: Any
    """What :func:`bcos_kernels.core.autograd.kernels_of` returned."""


_PLANS: dict[Any, Plan] = {}


def transform(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Tensor:
    """Computes all public layers: linear ``[..., K] -> [..., O]``, convolutions ``[N, C, ...] -> [N, O, ...]``.

    Args:
        x, weight, bias, b, detach: as in :func:`bcos_kernels.functional.bcos_conv2d`.
        geometry: the number of axes, stride, padding, dilation, groups and padding mode; empty for the linear layer.
        options: max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, out_dtype and backend. Both
            are plain tuples, because they are read and hashed at every call.

    Raises:
        TypeError, ValueError: as in :func:`bcos_kernels.functional.bcos_conv2d`.
    """
    arguments = (x, weight, bias, b)
    if has_torch_function_variadic(*arguments) and _torch.overloads(arguments):  # subclasses of Tensor keep their type
        return handle_torch_function(transform, arguments, *arguments, detach, geometry, options)
    late = None if isinstance(detach, bool) else late_mode(detach)
    early = late is None and detach
    found = plans.of(TRANSFORM, _PLANS, _make_plan, x, weight, bias, b, early, geometry, options)
    if not found.direct:
        return _around(found, x, weight, bias, b, late, geometry, options)
    inputs = x, weight, bias, b if found.call.spec.b is None else None
    return autograd.apply(TRANSFORM, inputs, found.call, late, found.backend, found.kernels)[0]


def plan(x, weight, bias, b, early: bool, geometry: tuple, options: tuple) -> Plan:
    """The plan of a call of :func:`transform`; ``early`` is the explanation mode."""
    return plans.of(TRANSFORM, _PLANS, _make_plan, x, weight, bias, b, early, geometry, options)


def direct_plan(x, weight, bias, b, detach, geometry: tuple, options: tuple) -> Plan | None:
    """The plan of a call whose op takes the tensors x, weight and bias as they are, and nothing else; else None."""
    found = plan(x, weight, bias, b, detach, geometry, options) if isinstance(detach, bool) else None
    return found if found is not None and found.direct and found.call.spec.b is not None else None


def _around(plan: Plan, x, weight, bias, b, late, geometry: tuple, options: tuple) -> Tensor:
    """The layer where something is done to the op's tensors before it or after it."""
    call, spec, gain, weight_in_norm = plan.call, plan.call.spec, None, plan.weight_in_norm
    if plan.unbatched:
        x = x.unsqueeze(0)
    if plan.lifted:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    if plan.padding is not None:
        x = F.pad(x, *plan.padding)
    if plan.casts is not None:
        x, weight, bias = _cast(x, weight, bias, *plan.casts)
    if weight_in_norm and bias is None:
        weight_in_norm, (weight, gain) = False, _without_norm(weight, not spec.unit)
    if plan.signs:
        weight = reference.unit_weight(weight).to(weight.dtype)
    rows = spec.is_linear and x.dim() != 2
    inputs = Inputs(x.reshape(-1, x.shape[-1]) if rows else x, weight, bias, b if spec.b is None else None)
    with nullcontext() if plan.casts is None else without_autocast(x):
        if plan.backend == REFERENCE.name:
            if options[-1] is None and not torch.compiler.is_compiling():  # counted unless the caller asked for it
                noun = f"bcos_conv{geometry[0]}d" if geometry else "bcos_linear"
                tally.plain(noun, "the backend 'reference' serves it")
            y = (_with_norm if weight_in_norm else reference.transform)(inputs, spec, late)
        else:
            (y,) = autograd.apply(TRANSFORM, inputs, call, late, plan.backend, plan.kernels)
        y = y.view(*x.shape[:-1], y.shape[-1]) if rows else y
        y = y if gain is None else y * gain.to(y.dtype)
    y = y.squeeze(2) if plan.lifted else y
    y = y.squeeze(0) if plan.unbatched else y
    return _torch.result(y) if rows or plan.lifted or plan.unbatched else y


def _make_plan(x, weight, bias, b, detach: bool, geometry: tuple, options: tuple) -> Plan:
    """Checks every argument and chooses the backend."""
    max_out, normalize_weights, weight_in_norm, norm_eps, cos_eps, exact_two, given, backend = options
    exponent = checks.exponent(b, x)
    if geometry:
        checks.tensors(x, weight, bias, 2 + geometry[0])
        shape, weight_shape, padding, options_of_axes = _convolution(x, weight, geometry, exponent != 1)
        checks.filters(weight, bias, max_out, options_of_axes["groups"])
    else:
        checks.tensors(x, weight, bias, 2)
        checks.filters(weight, bias, max_out)
        if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
            raise ValueError(f"x has shape {tuple(x.shape)}: (..., {weight.shape[1]}) is needed for this weight")
        shape, weight_shape = (prod(x.shape[:-1]), x.shape[-1]), tuple(weight.shape)
        padding, options_of_axes = None, {}
    flag("normalize_weights", normalize_weights)
    if flag("weight_in_norm", weight_in_norm):
        checks.single_filters(max_out)
    norm_eps = checks.norm_epsilons(norm_eps)
    small_norm = bias is not None and norm_eps[0] == 0 and x.dtype == torch.float32
    dtype, weight_dtype, y_dtype = _dtypes(x, weight, b, exponent, weight_in_norm, given, small_norm)
    casts = autocast_dtype(x.device.type) is not None or dtype != x.dtype
    weight_in_norm = weight_in_norm and exponent != 1
    unit = normalize_weights != (weight_in_norm and bias is None)
    signs = unit and prod(weight_shape[1:]) == 1 and dtype.itemsize == 2
    spec = Spec(
        **options_of_axes,
        max_out=max_out,
        b=exponent,
        unit=unit and not signs,
        norm_eps=norm_eps,
        cos_eps=real("cos_eps", cos_eps),
        exact_two=flag("exact_two", exact_two),
        detach=detach,
        out_dtype=y_dtype,
    )
    call = Call(
        spec=spec, x_shape=shape, weight_shape=weight_shape, dtype=dtype, weight_dtype=weight_dtype,
        bias=bias is not None, **device.fields_of(x.device),
    )  # fmt: skip
    if weight_in_norm and bias is not None:
        if backend not in (None, REFERENCE.name):
            raise ValueError(f"backend={backend!r} cannot serve this call: weight_in_norm=True has a bias beside it")
        backend = REFERENCE.name
    backend = TRANSFORM.choose(call, backend)
    unbatched, lifted = geometry != () and x.dim() == 1 + geometry[0], geometry[:1] == (1,)
    rows = spec.is_linear and x.dim() != 2
    changes = unbatched or lifted or rows or casts or weight_in_norm or signs or padding is not None
    return Plan(
        call, backend, padding, (dtype, weight_dtype) if casts else None, unbatched, lifted, weight_in_norm, signs,
        not changes and backend != REFERENCE.name, autograd.kernels_of(TRANSFORM, call, backend),
    )  # fmt: skip


def _convolution(x: Tensor, weight: Tensor, geometry: tuple, has_norm: bool):
    """The shapes of the op's x and weight, what ``F.pad`` makes that x with or None, and the convolution's options.

    ``geometry`` is as in :func:`transform`, and is checked. Where the padding is not zeros the op gets x padded,
    and its norm, if it has one, takes what was added as 0.
    """
    axes, *_, padding_mode = geometry
    stride, pads, dilation, groups = checks.convolution_geometry(x, weight, *geometry)
    *batch, channels = x.shape[:-axes]
    size, kernel = tuple(x.shape[-axes:]), tuple(weight.shape[2:])
    if axes == 1:
        size, kernel, stride, pads, dilation = (1, *size), (1, *kernel), (1, *stride), (0, 0, *pads), (1, *dilation)
    border: tuple[int, ...] = ()
    if padding_mode == "zeros" or not any(pads):
        mode, padding, more = "constant", pads[::2], [(0, high - low) for low, high in _ends(pads)]
    else:
        mode, padding, more = padding_mode, (0,) * len(size), _ends(pads)
        border = pads if has_norm else ()
    shape = (*(batch or (1,)), channels, *(n + low + high for n, (low, high) in zip(size, more, strict=True)))
    amounts = [amount for ends in reversed(more) for amount in ends]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "border": border, "groups": groups}
    return shape, (*weight.shape[:2], *kernel), (amounts, mode) if any(amounts) else None, options


def _ends(pads: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(pads[::2], pads[1::2], strict=True))


def _dtypes(
    x: Tensor, weight: Tensor, b, exponent: float | None, weight_in_norm: bool, given, small_norm: bool
) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """The dtypes of x, weight and y. Autocast casts as it does for nn.Conv2d.

    Only a fp32 weight stays fp32 there, and with it its norm and its gradient. What a b in fp64 promotes is computed in
    fp64 as a whole. Where autocast asks for fp16 and y is in fp32, the whole call is computed in fp32 on a CPU, whose
    kernels do so anyway, and where ``small_norm`` says that n may be much smaller than l, because a bias is in l, and
    no epsilon in the root of n. The reference forms n of the fp32 x: an n of the rounded x has lost digits, and dx
    overflows in fp16.
    """
    low = autocast_dtype(x.device.type)
    dtype, weight_dtype = x.dtype, weight.dtype
    if low is not None and x.dtype != torch.float64:
        dtype, weight_dtype = low, torch.float32 if weight.dtype == torch.float32 else low
    y_dtype = checks.result_dtype(low, x, b, weight if weight_in_norm else None) if exponent != 1 else dtype
    if given is None and y_dtype == torch.float64 != dtype:
        return (torch.float64,) * 3
    y_dtype = out_dtype(given, dtype) or y_dtype
    widens = small_norm or x.device.type == "cpu"
    if widens and dtype == torch.float16 and low is not None and y_dtype == torch.float32:
        return (torch.float32,) * 3
    return dtype, weight_dtype, y_dtype


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None, dtype, weight_dtype):
    return x.to(dtype), weight.to(weight_dtype), None if bias is None else bias.to(weight_dtype)


def _without_norm(weight: Tensor, normalize_weights: bool) -> tuple[Tensor, Tensor]:
    """The weight of an equal transform whose norm has no ‖w‖, and the factor of its y.

    Dividing both l and n·‖w‖ by ‖w‖ does not change the cosine and divides y = s·l by ‖w‖. A bias would be divided as
    well, and the gradient along w the difference of what ‖w‖ and the bias get: where a patch is zeros, nothing else.
    """
    norm = reference.weight_norm(weight)
    shape = (-1, *[1] * (weight.dim() - 1))
    if normalize_weights:
        inverse = torch.where(norm == 0, 0, 1 / torch.where(norm == 0, 1, norm))
        weight = weight * inverse.square().view(shape).to(weight.dtype)
    return weight, norm.view(shape[:-1])


def _with_norm(inputs: Inputs, spec: Spec, late) -> Tensor:
    """The transform with n·‖w‖ in place of n, in plain PyTorch; 0 for a zero filter."""
    x, weight, _, b = inputs
    products = reference.transform(inputs, replace(spec, b=1.0, out_dtype=x.dtype))
    length = reference.weight_norm(weight).view(-1, *[1] * len(spec.stride))
    n = reference.patch_norm(x, tuple(weight.shape[2:]), spec)
    if spec.groups > 1:
        n = n.repeat_interleave(len(weight) // spec.groups, 1)
    zero, of_all = length == 0, replace(spec, groups=1)
    return reference.scaled(torch.where(zero, 0, products), lambda: n * torch.where(zero, 1, length), b, of_all, late)
