"""The CUDA kernels for GPU tensors (``csrc/norm/cuda``): fp64, fp32, fp16, bf16, NCHW, channels_last, tokens."""

from __future__ import annotations

from ..core.candidate import Backend, Candidate
from ..gpu import cuda
from . import rows, traffic
from .native import Native

__all__ = ["BACKEND", "CANDIDATES"]

_MOST_POSITIONS = 2**31 - 1  # the largest index of 32 bits


_NATIVE = Native(lambda: cuda.kernels)

BACKEND = Backend("cuda", lambda call: cuda.unavailable(call) + call.unserved(_MOST_POSITIONS), interchangeable=True)
CANDIDATES = (
    Candidate(
        "cuda", "kernels", _NATIVE.forward, _NATIVE.backward, cost=traffic.cost, second=_NATIVE.second,
        gradient_map=_NATIVE.gradient_map, takes_rows=rows.taken(BACKEND),
    ),
)  # fmt: skip
