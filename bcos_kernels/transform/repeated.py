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

__all__ = ["ASKED", "HOOKS", "held", "keep", "repeated"]

_C: Any
_C, _ = extension.load()

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


def repeated(module: Any, x: Tensor) -> Any:
    """The layer of x where a call before read the same; else None, or the key under which :func:`keep` may keep it."""
    if _C is None or torch.compiler.is_dynamo_compiling():
        return None
    found = _C.again(module, x)
    if found is not None:
        tally.counts[0] += 1  # tally.fused() without a step into it
        return found
    linear: Any = module.__dict__["_modules"].get("linear")
    cls = type(module)
    if linear is None or type(linear) not in cls.linear_kinds:
        return None
    parameters = linear.__dict__["_parameters"]
    plain = type(linear) is cls.linear_kinds[0]
    # a dict with something in it has no key
    settings = cls.norm_eps, cls.b_rule, plain, _torch.GLOBAL_HOOKS
    found = _C.repeated(
        _PLANS, None, TRANSFORM.backends, settings, x, module, _NAMES, linear, _INNER, *ASKED, parameters, TENSORS
    )
    if isinstance(found, Tensor):
        tally.counts[0] += 1
    return found


def keep(key: bytes, module: Any, linear: Any, arguments: tuple) -> None:
    """Keeps how a call is served whose ``arguments`` are those of :func:`bcos_kernels.transform.functional.transform`.

    None is kept where something is done beside the op, or where an attribute is not the module's own.
    """
    own, inner = vars(module), vars(linear)
    held = own.keys() >= set(OWN) and inner["_parameters"].keys() >= set(TENSORS)
    usual = held and inner.keys() >= set(GEOMETRY if arguments[5] else ()) and not inner.keys() & set(TENSORS)
    plan = functional.direct_plan(*arguments) if usual and "b_rule" not in own and module.b_rule is None else None
    plans.keep(_PLANS, key, None if plan is None else plan.kernels)
