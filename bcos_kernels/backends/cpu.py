"""The C++ kernels for CPU tensors (``csrc/transform/cpu``): fp32, fp64 and bf16, NCHW and channels_last."""

from __future__ import annotations

import torch

from ..spec import Call
from . import extension, unserved
from .extension import transform_spec

_C, _absent = extension.load()

__all__ = ["conv2d", "conv2d_backward", "linear", "linear_backward", "why_not"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def why_not(call: Call) -> list[str]:
    """Reasons why the C++ kernels do not serve ``call``; empty when they do."""
    found = []
    if _C is None:
        found.append(_absent)
    if call.device != "cpu":
        found.append(f"device is {call.device!r}, the C++ kernels run on 'cpu'")
    found += unserved(call, _DTYPES)
    return found


def _forward(x, weight, bias, b, *rest):
    """``bcos_kernels::linear`` and ``conv2d`` of :mod:`bcos_kernels.ops`."""
    *options, out_dtype = rest
    return _C.transform_forward(x, weight, bias, b, transform_spec(tuple(options), b is not None, out_dtype))


def _backward(grad, x, weight, b, *rest):
    """``bcos_kernels::linear_backward`` and ``conv2d_backward`` of :mod:`bcos_kernels.ops`."""
    saved, options, (frozen, needs) = rest[:4], rest[4:-2], rest[-2:]
    spec = transform_spec(options, b is not None, grad.dtype)
    grads = _C.transform_backward(grad, x, weight, b, *saved, spec, frozen, needs)
    # operators return tensors only: an absent gradient is an empty one
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


linear = conv2d = _forward
linear_backward = conv2d_backward = _backward
