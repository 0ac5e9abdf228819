"""The C++ kernels for CPU tensors (``csrc/cpu``): fp32, fp64 and bf16, NCHW and channels_last."""

from __future__ import annotations

from types import ModuleType

import torch

from ..spec import Call
from . import unserved


def _load() -> tuple[ModuleType | None, str]:
    """The compiled extension, or why it is not used."""
    try:
        from .. import _C
    except ImportError as error:
        return None, f"the compiled extension bcos_kernels._C is not there ({error})"
    built_for = _C.build_info()["torch"]
    # the local label of a version tells where a build comes from, not which interface it has
    if built_for.partition("+")[0] != torch.__version__.partition("+")[0]:
        return None, f"bcos_kernels._C was built for torch {built_for}, running is {torch.__version__}: build it again"
    return _C, ""


_C, _absent = _load()

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
