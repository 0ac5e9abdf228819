"""The C++ kernels for CPU tensors (``csrc/dynamic_alignment/cpu``): fp32, fp64, bf16, fp16; NCHW, channels_last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import extension, half
from ..core.candidate import Backend, Candidate
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES"]

_C: Any = extension.load()[0]


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    return _C.dynamic_alignment_forward(*inputs, call.spec.native)


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    """The gradients of the inputs; one not needed is None.

    Of frozen dynamic weights x alone has a gradient, and those of the other inputs are zeros. Several gradients of
    every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``.
    """
    asked = [need and not (frozen and i) for i, need in enumerate(needs)]
    found = _C.dynamic_alignment_backward(grad, *inputs, saved.norm, saved.l, call.spec.native, asked)
    return inputs.gradients(found, needs)


BACKEND = Backend("cpu", extension.unavailable)
_KERNELS = Candidate("cpu", "kernels", forward, backward, takes_rows=lambda call, rows: True)
CANDIDATES = (half.through_fp32(_KERNELS),)
