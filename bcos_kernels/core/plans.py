"""Plans: what a public function decided for its arguments is kept for all calls in which they read the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import dispatch, extension
from .checks import autocast_dtype
from .op import Op

__all__ = ["MOST", "keep", "kept", "key"]

_C: Any
_C, _ = extension.load()

MOST = 4096
"""The most plans that one function keeps."""


def key(op: Op, *arguments: Any) -> tuple | None:
    """What a plan is kept under, of which the first argument is a tensor; None for arguments that have no key.

    It is equal for arguments of equal types and values, because True, 1 and 1.0 are equal, but not all of them are
    allowed. Of a tensor count the shape, dtype, device and layout; the others are numbers, strings, dtypes, None, or
    tuples of such. What was asked for outside of the call is part of the key: autocast, and the choice of backends.
    """
    facts = _facts(*arguments)
    return None if facts is None else (facts, dispatch.FORCED, *op.backends.values())


def _facts_in_python(*arguments: Any) -> tuple | None:
    try:
        facts = autocast_dtype(arguments[0].device.type), *map(_fact, arguments)
        hash(facts)
    except (AttributeError, TypeError):  # not a tensor, or without a hash, as a list or a symbolic size
        return None
    return facts


def _fact(value: Any) -> tuple:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.layout
    if isinstance(value, tuple):
        return tuple(map(_fact, value))
    return type(value), value


_facts = _facts_in_python if _C is None else _C.key_of


def keep(plans: dict, key: tuple | None, plan: Any) -> Any:
    """The plan, which is kept under the key if there is one."""
    if key is not None:
        if len(plans) >= MOST:
            plans.clear()
        plans[key] = plan
    return plan


_ABSENT = object()


def kept(plans: dict, key: tuple, make: Callable[[], Any]) -> Any:
    """The plan that is kept under the key, made at the first call with it; None is kept as well."""
    plan = plans.get(key, _ABSENT)
    return keep(plans, key, make()) if plan is _ABSENT else plan
