"""The CUDA kernels for GPU tensors (``csrc/dynamic_alignment/cuda``): fp64, fp32, fp16, bf16, for sm_80 and later."""

from __future__ import annotations

from torch import Tensor

from ..core.candidate import Backend, Candidate
from ..gpu import cuda
from . import traffic
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES", "TILE"]

TILE = 2**25
"""The gradients of dynamic weights in memory at once: 128 MiB of fp32, or 256 MiB of fp64."""


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    return cuda.kernels.dynamic_alignment_forward(*inputs, call.spec.native, call.tf32)


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    """The gradients of the inputs; one not needed is None. Those of frozen dynamic weights are zeros.

    Several gradients of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``.
    """
    asked = [need and not (frozen and i) for i, need in enumerate(needs)]
    found = cuda.kernels.dynamic_alignment_backward(
        grad, *inputs, saved.norm, saved.l, call.spec.native, asked, call.tf32, TILE
    )
    return inputs.gradients(found, needs)


BACKEND = Backend("cuda", lambda call: cuda.unavailable(call) + call.unserved(), interchangeable=True)
CANDIDATES = (Candidate("cuda", "kernels", forward, backward, cost=traffic.cuda_cost, takes_rows=Call.takes_rows),)
