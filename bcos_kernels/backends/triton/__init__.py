"""The Triton kernels for GPU tensors: fp32, fp16 and bf16, NHWC inside.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs
the same kernels on CPU tensors, slowly: a way to check them without a GPU.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ...spec import Call
from .. import most_rows, unserved
from ..gpu import device, operators

__all__ = ["conv2d", "conv2d_backward", "linear", "linear_backward", "why_not"]

linear, conv2d, linear_backward, conv2d_backward = operators("triton")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 2**31 - 1

INSTALLED = find_spec("triton") is not None


def why_not(call: Call) -> list[str]:
    """Reasons why the Triton kernels do not serve ``call``; empty when they do."""
    found = []
    if not INSTALLED:
        found.append("the package triton is not installed")
    if call.device == "cuda":
        found += _unserved_architecture()
    elif call.device != "cpu" or not device.INTERPRETED:
        hint = ", or on 'cpu' in the interpreter (TRITON_INTERPRET=1)" if call.device == "cpu" else ""
        found.append(f"device is {call.device!r}, the Triton kernels run on 'cuda'{hint}")
    found += unserved(call, _DTYPES)
    rows = most_rows(call)
    if rows > _LARGEST:
        found.append(f"{rows} pixels × groups of the input are above {_LARGEST}, the largest 32-bit index")
    return found


def _unserved_architecture() -> list[str]:
    arch = device.architecture()
    if arch.startswith("sm_") and int(arch[3:]) < 80:
        return [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"]
    return []
