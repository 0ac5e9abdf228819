"""Turns the arguments of the public function into a call of the op: checks, shapes, dtypes and the backend."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .. import tally
from ..core import _torch, autograd, checks, device, plans
from ..core.candidate import REFERENCE
from . import reference
from .call import Call, is_channels_last
from .op import NORM
from .spec import OVER, Inputs, Outputs, Spec

__all__ = ["Plan", "direct_plan", "norm", "planned"]

TOKEN = "token"
"""Over the channels of a token, x ``[..., C]``: the norm at positions of x ``[M, C]``."""


# Slots are read several times in every call, in half the time of a NamedTuple's fields.
@dataclass(frozen=True, slots=True)
class Plan:
    """All that follows from the shapes, dtypes and options of the arguments."""

    call: Call
    backend: str
    """The backends, as :meth:`bcos_kernels.core.op.Op.choose` names them."""
    kernels: Any
    """What :func:`bcos_kernels.core.autograd.kernels_of` returned."""


def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, detach, options
) -> Outputs:
    """y and the statistics; ``options`` are over, groups, centered, eps, paired, out_dtype and backend."""
    tensors = x, weight, bias, mean, var
    if has_torch_function_variadic(*tensors) and _torch.overloads(tensors):  # subclasses of Tensor keep their type
        return Outputs(*handle_torch_function(_as_tuple, tensors, *tensors, detach, options))
    late = checks.late_mode(detach)
    plan = _plan(tensors, late is None and detach, options)
    spec, shape = plan.call.spec, x.shape
    if options[0] == TOKEN:
        x = x.reshape(-1, shape[-1])
    elif spec.over == "all":
        weight, bias, mean, var = (t if t is None else t.expand(shape[1]) for t in (weight, bias, mean, var))
    inputs = Inputs(x, weight, bias, mean, var)
    if plan.backend == REFERENCE.name:
        if options[-1] is None and not torch.compiler.is_compiling():  # counted unless the caller asked for it
            tally.plain("norm", "the backend 'reference' serves it")
        with checks.without_autocast(x):
            outputs = reference.norm(inputs, spec, late)
    else:
        outputs = Outputs(*autograd.apply(NORM, inputs, plan.call, late, plan.backend, plan.kernels))
    return outputs._replace(y=_torch.result(outputs.y.view(shape))) if options[0] == TOKEN else outputs


def _as_tuple(*arguments) -> tuple[Tensor, ...]:
    """:func:`norm` as a function of torch: a ``__torch_function__`` can make tuples of its results, and not Outputs."""
    return tuple(norm(*arguments))


def direct_plan(tensors: tuple[Tensor | None, ...], detach: bool, options: tuple) -> Plan | None:
    """What :func:`planned` takes for ``x, weight, bias, mean, var`` like these; None where it cannot serve them."""
    if options[0] in (TOKEN, "all"):  # the op gets other views of them
        return None
    plan = _plan(tensors, detach, options)
    return None if plan.backend == REFERENCE.name else plan


def planned(plan: Plan, x: Tensor, *others: Tensor | None) -> Outputs:
    """:func:`norm` of ``x, weight, bias, mean, var`` with the arguments for which the plan was made."""
    return Outputs(*autograd.apply(NORM, (x, *others), plan.call, None, plan.backend, plan.kernels))


def _plan(tensors: tuple[Tensor | None, ...], detach: bool, options: tuple) -> Plan:
    """The plan of a call; a memory format counts beside what :func:`bcos_kernels.core.plans.key` reads of x."""
    x = tensors[0]
    last = isinstance(x, Tensor) and not _torch.transformed() and is_channels_last(x)  # vmap does not tell
    return plans.of(NORM, _PLANS, _make_plan, *tensors, detach, last, options)


_PLANS: dict[Any, Plan] = {}


def _make_plan(x, weight, bias, mean, var, detach: bool, channels_last: bool, options: tuple) -> Plan:
    """Checks every argument and chooses the backend."""
    tensors = zip(Inputs._fields, (x, weight, bias, mean, var), strict=True)
    x, weight, bias, mean, var = (checks.described(name, t, name != "x") for name, t in tensors)
    over, groups, centered, eps, paired, dtype, backend = options
    autocast = checks.autocast_dtype(x.device.type)
    if over not in (*OVER, TOKEN):
        raise ValueError(f"over={over!r}: allowed are {', '.join(map(repr, OVER))} and {TOKEN!r}")
    shape = (prod(x.shape[:-1]), x.shape[-1]) if over == TOKEN and x.shape else x.shape
    if len(shape) < 2:
        needed = "at least one dimension" if over == TOKEN else "the shape [N, C, ...]"
        raise ValueError(f"x has shape {tuple(x.shape)}: {needed} is needed for over={over!r}")
    checks.flag("centered", centered)
    _check_tensors(x, {"weight": weight, "bias": bias, "mean": mean, "var": var}, shape[1], over)
    if (mean is None) != (var is None or not centered):
        raise ValueError("mean and var: both are needed where a centered norm is given its statistics, else var alone")
    if var is not None and over not in ("batch", "all"):
        raise ValueError(f"var is given: over={over!r} has no running statistics, None is needed")
    groups = checks.integer("groups", groups, 1)
    if shape[1] % groups or (groups > 1 and over != "group"):
        raise ValueError(f"groups={groups}: a divisor of x's {shape[1]} channels is needed, and 1 unless over='group'")
    kinds = [t.dtype for t in (x, weight, bias) if t is not None]
    y_dtype = kinds[0]
    for kind in kinds[1:] if autocast is None else [torch.float32]:
        y_dtype = torch.promote_types(y_dtype, kind)
    spec = Spec(
        "position" if over == TOKEN else over,
        groups,
        centered,
        checks.real("eps", eps),
        detach,
        checks.out_dtype(dtype, x.dtype) or y_dtype,
        paired,
    )
    call = Call(
        spec=spec, x_shape=tuple(shape), dtype=x.dtype, weight=weight is not None, bias=bias is not None,
        given=var is not None, channels_last=channels_last or over == TOKEN, **device.fields_of(x.device),
    )  # fmt: skip
    backend = NORM.choose(call, backend)
    return Plan(call, backend, autograd.kernels_of(NORM, call, backend))


def _check_tensors(x: checks.Described, others: dict[str, checks.Described | None], channels: int, over: str) -> None:
    """Checks the dtypes, layouts and devices of all tensors, and the shapes of those with a value for each channel."""
    for name, t in {"x": x, **others}.items():
        if t is None:
            continue
        checks.check_dense(name, t, x.device)
        if (t.dtype == torch.float64) != (x.dtype == torch.float64):
            raise TypeError(f"{name} has dtype {t.dtype}, x has {x.dtype}: torch.float64 goes with itself alone")
        allowed = [(channels,), (1,)] if over == "all" else [(channels,)]
        if name != "x" and tuple(t.shape) not in allowed:
            shapes = " or ".join(map(str, allowed))
            raise ValueError(f"{name} has shape {tuple(t.shape)}: {shapes} is needed for x of shape {tuple(x.shape)}")
