"""Plans: what a public function decided for its arguments is kept for all calls in which they read the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import tally
from . import _torch, dispatch, extension
from .checks import autocast_dtype

__all__ = ["MOST", "keep", "key", "of", "repeated"]

P = TypeVar("P")

_C: Any = extension.load()[0]

MOST = 4096
"""The most plans that one function keeps."""


def _key_in_python(backends: dict[str, Any], forced: str | None, x: Any, *others: Any) -> tuple | None:
    try:
        facts = autocast_dtype(x.device.type), *backends.values(), *map(_fact, (forced, x, *others))
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


key: Callable[..., Any] = _key_in_python if _C is None else _C.key_of
"""``key(backends, forced, x, *others)``: what a plan is kept under; None for arguments that have no key.

It is equal for arguments of equal types and values, because True, 1 and 1.0 are equal, but not all of them are allowed.
Of a tensor count the shape, dtype, device and layout; the others are numbers, strings, dtypes, None, or tuples of such.
What was asked for outside of the call is part of the key: autocast, the backends of the op, and that which is
``forced``.
"""


def of(op: Any, plans: dict[Any, P], make: Callable[..., P], *arguments: Any) -> P:
    """``make(*arguments)``, which checks the arguments; kept for calls with their key, but for none of a compiler's."""
    read = None
    if not torch.compiler.is_dynamo_compiling():  # sizes may be symbolic there
        read = key(op.backends, dispatch.FORCED, *arguments)
        found = plans.get(read)
        if found is not None:
            return found
    if torch.compiler.is_compiling():
        return make(*arguments)
    if _torch.is_traced():  # a trace would record the checks, and sizes are tensors in it
        with _torch.unrecorded():
            return make(*arguments)
    return keep(plans, read, make(*arguments))


def repeated(plans: dict, make: Callable[[], Any], *decisive: Any) -> Tensor | None:
    """A module's call where all that is ``decisive`` reads as in a call before; None where Python must read the module.

    ``make()`` gives the kernels that serve calls which read like this one, or None where none serve them without more.
    """
    for _ in _TWICE:
        y = _C.repeated(plans, *decisive)  # a tensor, None, or the key of calls that were not met before
        if isinstance(y, Tensor):
            tally.counts[0] += 1  # tally.fused() without a step into it
            return y
        if y is None:
            return None
        keep(plans, y, make())
    return None  # another thread has emptied the plans meanwhile


_TWICE = range(2)


def keep(plans: dict, key: Any, plan: Any) -> Any:
    """The plan, which is kept under the key if there is one."""
    if key is not None:
        if len(plans) >= MOST:
            plans.clear()
        plans[key] = plan
    return plan
