"""The C++ kernels for CPU tensors (``csrc/transform/cpu``): fp32, fp64, bf16 and fp16, NCHW and channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import extension, half
from ..core.candidate import Backend, Candidate
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES"]

_C: Any = extension.load()[0]


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs, in the memory format that ``nn.Conv2d`` gives."""
    return _C.transform_forward(*inputs, call.spec.native)


def backward(
    grad: Tensor,
    inputs: Inputs,
    saved: Outputs,
    call: Call,
    tile: None,
    frozen: bool,
    needs,
    joined=(None, None),
    gradient_map=None,
) -> tuple:
    """The gradients of x, weight, bias and b; one not needed is None. ``frozen`` makes the scale a constant.

    ``joined`` holds the gradients of n and l that :func:`second` returned; beside them ``grad`` may be None. Several
    gradients of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``.
    ``gradient_map`` is what ``grad`` still has to pass: see ``Candidate.takes_gradient_map``.
    """
    if grad is None:
        grad = torch.zeros_like(joined[1])
    x, weight, _, tensor_b = inputs
    return _C.transform_backward(
        grad, x, weight, tensor_b, *saved, *joined, gradient_map, call.spec.native, frozen, list(needs)
    )


def second(v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted) -> tuple:
    """The gradients of ⟨v, dx⟩: those of grad, x, weight, bias, b, n and l."""
    x, weight, *_ = inputs
    spec = call.spec
    dgrad, dx, dweight, *joined = _C.transform_second(
        v, grad, x, weight, *saved, spec.native, frozen, spec.detach, list(wanted[1:3])
    )
    return dgrad, dx, dweight, None, None, *(t for t in joined if t is not None)


def kernels(call: Call, by_operators):
    """Both directions without a step through Python."""
    return _C.transform_kernels(call.spec.native, call.spec.saves_output, call.spec.detach, by_operators)


BACKEND = Backend("cpu", lambda call: extension.unavailable(call) + call.unserved())
_KERNELS = Candidate(
    "cpu", "kernels", forward, backward, second=second, takes_gradient_map=True, kernels=kernels,
    takes_rows=lambda call, rows: True,
)  # fmt: skip
CANDIDATES = (half.through_fp32(_KERNELS, rounded=(0, 2), knows_fp16=True),)
