"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16, in NCHW and channels_last, and for tokens.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs
the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

from ...core.candidate import Backend, Candidate
from ...gpu.triton import unavailable
from .. import rows, traffic
from ..call import Call

__all__ = ["BACKEND", "CANDIDATES", "why_not"]

_MOST_POSITIONS = 2**30  # leaves the end of the last part an index of 32 bits


def why_not(call: Call) -> list[str]:
    """The reasons why the Triton kernels do not serve ``call``; empty where they do."""
    return unavailable(call) + call.unserved(_MOST_POSITIONS)


@cache
def _kernels() -> ModuleType:
    """The module that starts the kernels. The first call imports it, because machines without a GPU need no Triton."""
    from . import layer

    return layer


def _forward(inputs, call: Call, tile: None):
    return _kernels().forward(inputs, call)


def _backward(grad, inputs, saved, call: Call, tile: None, frozen: bool, needs, joined=(None,)):
    return _kernels().backward(grad, inputs, saved, call, frozen, needs, joined)


def _gradient_map(grad, inputs, saved, call: Call, frozen: bool, needs, joined):
    return _kernels().backward(grad, inputs, saved, call, frozen, needs, joined, as_map=True)


def _second(v, grad, inputs, saved, call: Call, frozen: bool, wanted):
    dgrad, dweight, dvar = _kernels().second(v, grad, inputs, saved, call, wanted[2])
    return dgrad, None, dweight, None, None, None, *(() if dvar is None else (dvar,))


BACKEND = Backend("triton", why_not, interchangeable=True)
CANDIDATES = (
    Candidate(
        "triton", "kernels", _forward, _backward, cost=traffic.cost, second=_second, gradient_map=_gradient_map,
        takes_rows=rows.taken(why_not),
    ),
)  # fmt: skip
