"""The CUDA kernels for GPU tensors (``csrc/cuda``): fp32, fp16 and bf16, NHWC inside, sm_80 and later."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...spec import Call
from .. import extension, unserved
from ..gpu import operators
from ..gpu.choice import Choice
from ..gpu.problem import Problem, most_rows
from ..gpu.tile import CANDIDATES
from .plan import LARGE

__all__ = ["backward", "conv2d", "conv2d_backward", "forward", "linear", "linear_backward", "why_not"]

linear, conv2d, linear_backward, conv2d_backward = operators("cuda")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 2**31 - 128  # the last row of the largest tile is still an index


def _load():
    """The submodule of the extension, or why there is none."""
    built, absent = extension.load()
    kernels = getattr(built, "cuda", None)
    if built is not None and kernels is None:
        absent = "the compiled extension was built without CUDA, which takes a torch with CUDA and its toolkit"
    return kernels, absent


_kernels, _absent = _load()
_device = _kernels and _kernels.build_info()["device"]


def why_not(call: Call) -> list[str]:
    """Reasons why the CUDA kernels do not serve ``call``; empty when they do."""
    found = []
    if _kernels is None:
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
    reason = _kernels.why_not()
    if not reason:
        return []
    compiled = ", ".join(f"sm_{arch // 10}" for arch in _kernels.build_info()["architectures"])
    return [f"the CUDA kernels were compiled for {compiled} and cannot run on GPU {index}: {reason}"]


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> tuple:
    """(y, n, l, winner) of x ``[N, C, H, W]``, channels_last, or ``[M, K]``; empty where the problem has none."""
    return _kernels.forward(x, weight, bias, b, p.geometry, p.formula_arguments, p.out_dtype, _way(p, choice))


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved, explain: bool, needs
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    return _kernels.backward(
        grad, x, weight, b, *saved, p.geometry, p.formula_arguments, explain, needs, _way(p, choice)
    )


def _way(p: Problem, choice: Choice) -> tuple[int, bool, bool]:
    """As the extension takes it: candidate, whether the larger tile, whether tf32 products."""
    return CANDIDATES.index(choice.candidate), choice.tile == LARGE, p.precision == "tf32"
