"""The C++ kernels for CPU tensors (``csrc/norm/cpu``): fp32, fp64 and bf16, NCHW, channels_last and tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import extension
from ..core.candidate import Backend, Candidate
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES", "why_not"]

_C: Any
_C, _absent = extension.load()
_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def why_not(call: Call) -> list[str]:
    """The reasons why the C++ kernels do not serve ``call``; empty where they do."""
    found = []
    if _C is None:
        found.append(_absent)
    if call.device != "cpu":
        found.append(f"device is {call.device!r}, the C++ kernels run on 'cpu'")
    if call.dtype not in _DTYPES:
        found.append(f"dtype {call.dtype} is not one of {', '.join(map(str, _DTYPES))}")
    return found


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    return _C.norm_forward(*inputs, call.spec.native)


def backward(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, tile: None, frozen: bool, needs) -> tuple:
    """The gradients of x, weight and bias; one not needed is None. ``frozen`` makes the variance a constant."""
    x, weight, bias, mean, var = inputs
    dx, dweight, dbias = _C.norm_backward(
        grad, x, weight, mean, var, saved.mean, saved.var, call.spec.native, frozen, list(needs[:3])
    )
    return dx, _like(dweight, weight), _like(dbias, bias), None, None


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or parameter is None else gradient.to(parameter.dtype)


BACKEND = Backend("cpu", why_not)
CANDIDATES = (Candidate("cpu", "kernels", forward, backward),)
