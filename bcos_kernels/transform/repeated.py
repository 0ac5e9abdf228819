"""A call of a B-cos module that reads as one before: what decides is read in the extension, and nothing in Python.

An attribute of a module takes Python ten times as long to read as one of another object.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import tally
from ..core import _torch, dispatch, extension, plans
from . import functional
from .op import TRANSFORM

__all__ = ["ASKED", "HOOKS", "held", "repeated"]

_C: Any = extension.load()[0]

OWN = "b", "backend", "detach", "max_out", "normalize_weights", "out_dtype"
"""What a layer holds of what decides about a call; the values of its class count in no key."""
GEOMETRY = "stride", "padding", "dilation", "groups", "padding_mode"
TENSORS = "weight", "bias"
ASKED = vars(dispatch), ("FORCED",)
"""Where it stands which backends the environment asks for."""
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
"""Where a module holds the hooks of its calls."""
_NAMES = (*OWN, "b_rule", "norm_eps", "calc_patch_norms", "linear")
_INNER = (*GEOMETRY, *HOOKS, *TENSORS, "forward")

_PLANS: dict[Any, Any] = {}
"""All that decides about a call -> the kernels that serve it, or None where the module must be read."""


def held(module: Any, name: str) -> Any:
    """``getattr(module, name)``; a parameter, a buffer or a part of the module is found ten times as fast."""
    own = module.__dict__
    if name in own:
        return getattr(module, name)
    if name in (at := own["_parameters"]) or name in (at := own["_buffers"]) or name in (at := own["_modules"]):
        return at[name]
    return getattr(module, name)


def repeated(module: Any, x: Tensor) -> Tensor | None:
    """The layer of x where a call before read the same; else None."""
    if _C is None or torch.compiler.is_dynamo_compiling():
        return None
    y = _C.again(module, x)
    if y is not None:
        tally.counts[0] += 1  # tally.fused() without a step into it
        return y
    linear: Any = module.__dict__["_modules"].get("linear")
    cls = type(module)
    if linear is None or type(linear) not in cls.linear_kinds:
        return None
    parameters = linear.__dict__["_parameters"]
    plain = type(linear) is cls.linear_kinds[0]
    # a dict with something in it has no key
    settings = cls.norm_eps, cls.b_rule, plain, _torch.GLOBAL_HOOKS
    return plans.repeated(
        _PLANS, lambda: _kernels(module, linear, x), None, TRANSFORM.backends, settings, x, module, _NAMES, linear,
        _INNER, *ASKED, parameters, TENSORS,
    )  # fmt: skip


def _kernels(module: Any, linear: Any, x: Tensor) -> Any:
    """What serves a call; None where something is done beside the op, or where an attribute is not the module's own."""
    own, inner = vars(module), vars(linear)
    held = own.keys() >= set(OWN) and inner["_parameters"].keys() >= set(TENSORS)
    usual = held and inner.keys() >= set(GEOMETRY if module.axes else ()) and not inner.keys() & set(TENSORS)
    if not usual or "b_rule" in own or module.b_rule is not None:
        return None
    plan = functional.direct_plan(x, linear.weight, linear.bias, *module.arguments(x))
    return None if plan is None else plan.kernels
