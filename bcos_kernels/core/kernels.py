"""Calls that the extension records in autograd's graph, and whose kernels it starts itself where they are C++.

``csrc/common/autograd/recorded.h`` is their side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor

from . import extension, plans
from .op import Op

__all__ = ["Maker", "has_hooks", "leave", "maker_of", "of", "outputs_of"]

_C: Any = extension.load()[0]

outputs_of: Any = None if _C is None else _C.outputs_of
"""``outputs_of(kernels, inputs)``: the outputs that a caller gets; None where something must see the operators, or
forward-mode derivatives are computed."""


class Maker(NamedTuple):
    """A kind of calls that the extension serves."""

    op: Op
    call: Any
    """One of these calls; the others have the same spec and dtype."""
    backend: str


_KERNELS: dict[tuple, Any] = {}
"""At most as many as plans are kept, because a b that changes at every step makes new ones at every step. Graphs and
plans own the kernels that they use."""
_MAKERS: WeakKeyDictionary[Any, Maker] = WeakKeyDictionary()
"""The kernels -> what they serve."""


def of(op: Op, call, backend: str, by_operators: Callable[..., tuple]) -> Any:
    """What serves a call and records it, as :func:`outputs_of` takes it; None where Python records the call.

    ``by_operators(op, spec, backend, grad, inputs, saved, needs, gradient_map)`` is the backward where it is
    differentiated, or where something must see the operators.
    """
    lone = op.without_choice(backend)
    if _C is None or call.spec.paired or not op.candidates_of(backend):
        return None
    key = op, lone, call.spec, call.dtype, backend
    made = _KERNELS.get(key)
    if made is None:
        gradients = partial(by_operators, op, call.spec, backend)
        made = None if lone is None or lone.kernels is None else lone.kernels(call, gradients)
        made = made or _started_by_python(op, call.spec, backend, gradients)
        _MAKERS[made] = Maker(op, call, backend)
        plans.keep(_KERNELS, key, made)
    return made


def _started_by_python(op: Op, spec, backend: str, by_operators: Callable[..., tuple]) -> Any:
    """The kernels of candidates that Python starts, in calls that are recorded all the same without its Function."""

    def forward(inputs: list) -> tuple:
        made = op.inputs(*inputs)
        return op.serve(made, op.call(made, spec), backend)

    def backward(grad: Tensor, inputs: list, saved: list, needs: list, gradient_map: Tensor | None) -> tuple:
        made, used = op.inputs(*inputs), tuple(needs)
        call = op.call(made, spec)
        return op.serve_backward(grad, made, op.outputs(*saved), call, False, used, backend, gradient_map)

    sizes = len(op.inputs._fields), len(op.outputs._fields), op.returned, spec.saves_output
    return _C.kernels_started_by_python(forward, backward, by_operators, *sizes)


def maker_of(y: Tensor) -> Maker | None:
    """What made y; None where the extension did not, or where a backward of that call was differentiated."""
    made = None if _C is None else _C.maker_of(y)
    return None if made is None else _MAKERS.get(made)


def has_hooks(y: Tensor) -> bool:
    """Whether a hook sees the gradient of y; without the extension, hooks of the node that made y are not known."""
    return (y.retains_grad or bool(y._backward_hooks)) if _C is None else _C.has_hooks(y)


def leave(y: Tensor, grad: Tensor, gradient_map: Tensor, message: str) -> None:
    """Leaves a gradient map with the call that made y: ``grad`` must arrive there, or the backward fails."""
    _C.leave(y, grad, gradient_map, message)
