"""The Triton kernels for GPU tensors: fp32, fp16 and bf16, NHWC inside.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs
the same kernels on CPU tensors, slowly: a way to check them without a GPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from ...spec import Call
from .. import unserved
from ..gpu import device, operators
from ..gpu.choice import Choice
from ..gpu.problem import Problem, most_rows

__all__ = ["backward", "conv2d", "conv2d_backward", "forward", "linear", "linear_backward", "why_not"]

linear, conv2d, linear_backward, conv2d_backward = operators("triton")

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 2**31 - 1


def why_not(call: Call) -> list[str]:
    """Reasons why the Triton kernels do not serve ``call``; empty when they do."""
    found = []
    if find_spec("triton") is None:
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


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> tuple:
    """(y, n, l, winner) of x ``[N, C, H, W]``, channels_last, or ``[M, K]``; empty where the problem has none."""
    with _on_device_of(x):
        outputs = _layer().forward(p, choice, _image(x), _image(weight), bias, b)
    return tuple(map(_rows_of, outputs)) if p.is_linear else outputs


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved, explain: bool, needs
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    layer = _layer()
    saved = layer.Saved(*map(_image, saved))
    with _on_device_of(x):
        grads = layer.backward(p, choice, _image(grad), _image(x), _image(weight), b, saved, explain, needs)
    return (*map(_rows_of, grads[:2]), *grads[2:]) if p.is_linear else grads


def _layer():
    from . import layer

    return layer


def _on_device_of(x: Tensor):
    """Triton starts kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()


def _image(t: Tensor | None) -> Tensor | None:
    """``[M, K]`` as images of one pixel, ``[M, K, 1, 1]``."""
    return t.contiguous()[:, :, None, None] if t is not None and t.dim() == 2 else t


def _rows_of(images: Tensor | None) -> Tensor | None:
    return images[:, :, 0, 0] if images is not None and images.dim() == 4 else images
