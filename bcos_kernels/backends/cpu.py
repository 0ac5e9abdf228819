"""The C++ kernels for CPU tensors (``csrc/cpu``): fp32, fp64 and bf16, NCHW and channels_last."""

from __future__ import annotations

import torch

from ..spec import Call
from . import extension, unserved

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


def linear(*args):
    """``bcos_kernels::linear`` of :mod:`bcos_kernels.ops`."""
    return _C.linear(*args)


def conv2d(*args):
    """``bcos_kernels::conv2d`` of :mod:`bcos_kernels.ops`."""
    return _C.conv2d(*args)


def linear_backward(*args):
    """``bcos_kernels::linear_backward`` of :mod:`bcos_kernels.ops`."""
    return _gradients(_C.linear_backward(*args), args)


def conv2d_backward(*args):
    """``bcos_kernels::conv2d_backward`` of :mod:`bcos_kernels.ops`."""
    return _gradients(_C.conv2d_backward(*args), args)


def _gradients(grads, args):
    """Operators return tensors only: an absent gradient is an empty one."""
    return tuple(args[0].new_empty(0) if g is None else g for g in grads)
