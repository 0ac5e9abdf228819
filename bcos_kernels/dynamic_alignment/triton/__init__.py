"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs
the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from ...core.candidate import Backend, Candidate
from ...gpu.triton import deferred, unavailable
from .. import traffic
from ..call import Call

__all__ = ["BACKEND", "CANDIDATES", "why_not"]


def why_not(call: Call) -> list[str]:
    """The reasons why the Triton kernels do not serve ``call``; empty where they do."""
    return unavailable(call) + call.unserved()


_forward, _backward = (deferred(f"{__name__}.layer", name) for name in ("forward", "backward"))

BACKEND = Backend("triton", why_not, interchangeable=True)
CANDIDATES = (Candidate("triton", "kernels", _forward, _backward, cost=traffic.cost, takes_rows=Call.takes_rows),)
