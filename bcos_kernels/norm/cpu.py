"""The C++ kernels for CPU tensors (``csrc/norm/cpu``): fp32, fp64, bf16 and fp16, NCHW, channels_last and tokens."""

from __future__ import annotations

from typing import Any

from ..core import extension, half
from ..core.candidate import Backend, Candidate
from . import rows
from .call import Call
from .native import Native

__all__ = ["BACKEND", "CANDIDATES"]

_C: Any = extension.load()[0]


def kernels(call: Call, by_operators):
    """Both directions without a step through Python."""
    return _C.norm_kernels(call.spec.native, call.spec.detach, by_operators)


_NATIVE = Native(lambda: _C)

BACKEND = Backend("cpu", extension.unavailable)
_KERNELS = Candidate(
    "cpu", "kernels", _NATIVE.forward, _NATIVE.backward, second=_NATIVE.second, gradient_map=_NATIVE.gradient_map,
    kernels=kernels, takes_rows=rows.taken(BACKEND),
)  # fmt: skip
CANDIDATES = (half.through_fp32(_KERNELS),)
