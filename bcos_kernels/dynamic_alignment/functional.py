"""Turns the arguments of the public function into a call of the op: checks, casts, the projection and the backend."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tally
from ..core import _torch, autograd, plans
from ..core.candidate import REFERENCE
from ..core.checks import Described, autocast_dtype, check_dense, described, flag, integer, pair, without_autocast
from ..core.device import gpu_of
from ..core.formats import memory_format
from . import reference
from .call import Call
from .op import DYNAMIC_ALIGNMENT
from .spec import NORMS, Inputs, Spec

__all__ = ["dynamic_alignment"]


class Plan(NamedTuple):
    """All that follows from the shapes, dtypes and options of the arguments."""

    call: Call
    backend: str
    groups: int
    dtype: torch.dtype | None
    """The dtype to which the op's inputs are cast under autocast; None outside of it."""


_TENSORS = ("x", "projection", "weight", "bias")
_OPTIONAL = (False, False, False, True)
"""The tensors among the arguments, and which of them may be None."""


def dynamic_alignment(
    x: Tensor, projection: Tensor, weight: Tensor, bias: Tensor | None, detach, options: tuple
) -> Tensor:
    """y; ``options`` are stride, padding, groups, norm and backend."""
    plan = plans.of(DYNAMIC_ALIGNMENT, _PLANS, _make_plan, x, projection, weight, bias, detach, *options)
    spec, batched = plan.call.spec, x.dim() == 4
    x = x if batched else x.unsqueeze(0)
    if detach:  # the dynamic weights are constants, and so is all that they are made of
        with torch.no_grad():
            h = F.conv2d(x, projection, None, spec.stride, spec.padding)
            weight, bias = weight.detach(), None if bias is None else bias.detach()
    else:
        h = F.conv2d(x, projection, None, spec.stride, spec.padding)
    weight = weight.flatten(1)
    if plan.groups > 1:  # outputs see a part of h each: zeros for all other parts
        weight = torch.block_diag(*weight.chunk(plan.groups))
    inputs = Inputs(x, h, weight, bias)
    if plan.dtype is not None:
        x, h, weight = (t.to(plan.dtype) for t in (x, h, weight))
        inputs = Inputs(x, h, weight, None if bias is None else bias.to(plan.dtype))
    with without_autocast(x):
        if plan.backend == REFERENCE.name:
            if options[-1] is None and not torch.compiler.is_compiling():  # counted unless the caller asked for it
                tally.plain("dynamic_alignment", "the backend 'reference' serves it")
            (y,) = reference.dynamic_alignment(inputs, spec)
            y = y if _torch.transformed() else y.contiguous(memory_format=memory_format(x))  # vmap does not tell
        else:
            (y,) = autograd.apply(DYNAMIC_ALIGNMENT, inputs, plan.call, None, plan.backend)
    return y if batched else _torch.result(y.squeeze(0))


_PLANS: dict[Any, Plan] = {}


def _make_plan(x, projection, weight, bias, detach, stride, padding, groups, norm, backend) -> Plan:
    """Checks every argument and chooses the backend."""
    tensors = tuple(map(described, _TENSORS, (x, projection, weight, bias), _OPTIONAL))
    x, projection, weight, bias = tensors
    autocast = autocast_dtype(x.device.type)
    _check_kinds(dict(zip(_TENSORS, tensors, strict=True)), autocast)
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: allowed are {', '.join(map(repr, NORMS))}")
    stride, padding = pair("stride", stride, 1), pair("padding", padding, 0)
    if len(x.shape) not in (3, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}: (N, C, H, W) or (C, H, W) is needed")
    channels, *size = x.shape[-3:]
    if len(projection.shape) != 4 or 0 in projection.shape or projection.shape[1] != channels:
        needed = f"(rank, {channels}, kH, kW), none of them 0, is needed for x of {channels} channels"
        raise ValueError(f"projection has shape {tuple(projection.shape)}: {needed}")
    rank, _, *kernel = projection.shape
    for name, length, taps, amount in zip(("height", "width"), size, kernel, padding, strict=True):
        if taps > length + 2 * amount:
            raise ValueError(f"the kernel spans {taps} pixels of {name}, more than the padded {length + 2 * amount}")
    groups = integer("groups", groups, 1)
    if rank % groups:
        raise ValueError(f"groups={groups} does not divide the rank {rank} of projection")
    patch = channels * prod(kernel)
    rows, allowed = weight.shape[0] if weight.shape else 0, (rank // groups, 1, 1)
    if tuple(weight.shape[1:]) != allowed or rows == 0 or rows % patch or rows % groups:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: (rows, {rank // groups}, 1, 1) is needed, rows a multiple of the "
            f"{patch} values of a patch and of groups={groups}"
        )
    if bias is not None and tuple(bias.shape) != (rows,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}: ({rows},), one entry per row of weight, is needed")
    spec = Spec(tuple(kernel), stride, padding, norm, flag("detach", detach))
    dtype = None if autocast is None or x.dtype == torch.float64 else torch.float32
    shape = (*(1,) * (4 - len(x.shape)), *x.shape)
    call = Call(
        spec=spec, device=x.device.type, x_shape=shape, rank=rank, outputs=rows // patch, dtype=dtype or x.dtype,
        bias=bias is not None, **gpu_of(x.device),
    )  # fmt: skip
    return Plan(call, DYNAMIC_ALIGNMENT.choose(call, backend), groups, dtype)


def _check_kinds(tensors: dict[str, Described | None], autocast: torch.dtype | None) -> None:
    """Checks the dtypes, layouts and devices of all tensors."""
    x = cast(Described, tensors["x"])
    for name, t in tensors.items():
        if t is None:
            continue
        check_dense(name, t, x.device)
        if t.dtype != x.dtype and autocast is None:
            raise TypeError(f"{name} has dtype {t.dtype}, x has {x.dtype}: both must be equal outside of autocast")
