"""The Triton kernels for GPU tensors: fp32, fp16 and bf16.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs
the same kernels slowly on CPU tensors, which checks them without a GPU.

The training backward of the norm ``"l1"`` is that of ``tiled``, because the factored form has no signs of weights.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from ...core import dispatch
from ...core.candidate import Backend, Candidate
from ...gpu.triton import unavailable
from .. import tiled, traffic
from ..call import Call

__all__ = ["BACKEND", "CANDIDATES", "why_not"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST = 2**30  # leaves the end of the last tile an index of 32 bits


def why_not(call: Call) -> list[str]:
    """The reasons why the Triton kernels do not serve ``call``; empty where they do."""
    found = unavailable(call.device) + dispatch.other_dtype(call.dtype, _DTYPES)
    counts = {"pixels": call.pixels, "rows of weight": call.patch * call.outputs, "values of rank": call.rank}
    found += [f"{count} {name} are above {_MOST}, the largest index" for name, count in counts.items() if count > _MOST]
    return found


def _takes_rows(call: Call, rows: int) -> bool:
    return rows * call.pixels <= _MOST


@cache
def _kernels() -> ModuleType:
    """The module that starts the kernels. The first call imports it, because machines without a GPU need no Triton."""
    from . import layer

    return layer


def _forward(inputs, call: Call, tile: None):
    return _kernels().forward(inputs, call.now())


def _backward(grad, inputs, saved, call: Call, tile: None, frozen: bool, needs):
    if call.spec.norm == "l1" and any(needs[1:]) and not frozen:  # it needs the signs of all dynamic weights
        return tiled.backward(grad, inputs, saved, call, tile, frozen, needs)
    return _kernels().backward(grad, inputs, saved, call.now(), frozen, needs)


BACKEND = Backend("triton", why_not)
CANDIDATES = (Candidate("triton", "kernels", _forward, _backward, cost=traffic.cost, takes_rows=_takes_rows),)
