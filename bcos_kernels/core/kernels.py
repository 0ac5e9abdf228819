"""Calls that take no step through Python: the extension records them in autograd's graph and starts their kernels.

``csrc/common/autograd/recorded.h`` is their side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from . import extension
from .op import Op

__all__ = ["Maker", "leave", "maker_of", "of"]

_C: Any
_C, _ = extension.load()


class Maker(NamedTuple):
    """A kind of calls that the extension serves."""

    op: Op
    call: Any
    """One of these calls; the others have the same spec and dtype."""
    backend: str


_KERNELS: dict[tuple, Any] = {}
_MAKERS: dict[Any, Maker] = {}
"""The kernels, which are kept for good because graphs hold them -> what they serve."""


def of(op: Op, call, backend: str, by_operators: Callable[..., tuple]) -> Any:
    """The kernels of a call, as :attr:`bcos_kernels.core.candidate.Candidate.kernels` gives them; often None.

    ``by_operators(op, spec, backend, grad, inputs, saved, needs, gradient_map)`` is the backward where it is
    differentiated, or where something must see the operators.
    """
    lone = op.without_choice(backend)
    if lone is None or lone.kernels is None or call.spec.paired:
        return None
    key = lone, call.spec, call.dtype, backend
    if key not in _KERNELS:
        made = _KERNELS[key] = lone.kernels(call, partial(by_operators, op, call.spec, backend))
        if made is not None:
            _MAKERS[made] = Maker(op, call, backend)
    return _KERNELS[key]


def maker_of(y: Tensor) -> Maker | None:
    """What made y; None where the extension did not, or where a backward of that call was differentiated."""
    return None if _C is None else _MAKERS.get(_C.maker_of(y))


def leave(y: Tensor, grad: Tensor, gradient_map: Tensor, message: str) -> None:
    """Leaves a gradient map with the call that made y: ``grad`` must arrive there, or the backward fails."""
    _C.leave(y, grad, gradient_map, message)
