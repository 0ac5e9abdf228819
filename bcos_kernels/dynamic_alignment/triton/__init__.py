"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16.

Whether they serve a call is known without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's
interpreter runs the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from ...core.candidate import Backend, Candidate
from ...gpu.triton import deferred, unavailable
from .. import traffic
from ..call import Call

__all__ = ["BACKEND", "CANDIDATES"]


_forward, _backward = (deferred(f"{__name__}.layer", name) for name in ("forward", "backward"))

BACKEND = Backend("triton", lambda call: unavailable(call) + call.unserved(), interchangeable=True)
CANDIDATES = (Candidate("triton", "kernels", _forward, _backward, cost=traffic.cost, takes_rows=Call.takes_rows),)
