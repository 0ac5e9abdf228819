"""The CUDA kernels for GPU tensors (``csrc/transform/cuda``): fp32, fp16 and bf16, NHWC inside, sm_80 and later."""

from __future__ import annotations

from functools import cache

import torch

from ...spec import Call
from .. import extension, most_rows, unserved
from ..gpu import operators

__all__ = ["conv2d", "conv2d_backward", "linear", "linear_backward", "why_not"]

linear, conv2d, linear_backward, conv2d_backward = operators("cuda")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 2**31 - 128  # the last row of the largest tile is still an index


def _load():
    """The submodule of the extension, or why there is none."""
    built, absent = extension.load()
    found = getattr(built, "cuda", None)
    if built is not None and found is None:
        absent = "the compiled extension was built without CUDA, which takes a torch with CUDA and its toolkit"
    return found, absent


kernels, _absent = _load()
_device = kernels and kernels.build_info()["device"]


def why_not(call: Call) -> list[str]:
    """Reasons why the CUDA kernels do not serve ``call``; empty when they do."""
    found = []
    if kernels is None:
        found.append(_absent)
    elif call.device != _device:
        found.append(f"device is {call.device!r}, the CUDA kernels run on 'cuda'")
    else:
        found += _unserved_architecture()
    found += unserved(call, _DTYPES)
    rows = most_rows(call)
    if rows > _LARGEST:
        found.append(f"{rows} pixels × groups of the input are above {_LARGEST}, the largest index")
    return found


def _unserved_architecture() -> list[str]:
    return _unserved_by(torch.cuda.current_device() if _device == "cuda" else None)


# as torch.compiler.assume_constant_result does, without importing the compiler: it cannot look into the extension
_unserved_architecture._dynamo_marked_constant = True


@cache
def _unserved_by(index: int | None) -> list[str]:
    reason = kernels.why_not()
    if not reason:
        return []
    compiled = ", ".join(f"sm_{arch // 10}" for arch in kernels.build_info()["architectures"])
    return [f"the CUDA kernels were compiled for {compiled} and cannot run on GPU {index}: {reason}"]
