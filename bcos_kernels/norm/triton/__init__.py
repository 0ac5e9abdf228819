"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16, in NCHW and channels_last, and for tokens.

Whether they serve a call is known without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's
interpreter runs the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from functools import partial

from ...core.candidate import Backend, Candidate
from ...gpu.triton import deferred, unavailable
from .. import rows, traffic

__all__ = ["BACKEND", "CANDIDATES"]

_MOST_POSITIONS = 2**30  # leaves the end of the last part an index of 32 bits


_layer = partial(deferred, f"{__name__}.layer")

BACKEND = Backend("triton", lambda call: unavailable(call) + call.unserved(_MOST_POSITIONS), interchangeable=True)
CANDIDATES = (
    Candidate(
        "triton", "kernels", _layer("forward"), _layer("backward"), cost=traffic.cost, second=_layer("second"),
        gradient_map=_layer("gradient_map"), takes_rows=rows.taken(BACKEND),
    ),
)  # fmt: skip
