"""The Triton kernels for GPU tensors: fp32, fp16 and bf16, NHWC inside.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment Triton's interpreter runs
the same kernels on CPU tensors, slowly: a way to check them without a GPU.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib.util import find_spec
from math import prod

import torch
from torch import Tensor

from ...spec import Call
from .. import unserved
from .problem import Problem

__all__ = ["conv2d", "conv2d_backward", "linear", "linear_backward", "problem", "why_not"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LARGEST = 2**31 - 1
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(call: Call) -> list[str]:
    """Reasons why the Triton kernels do not serve ``call``; empty when they do."""
    found = []
    if find_spec("triton") is None:
        found.append("the package triton is not installed")
    if call.device == "cuda":
        found += _unserved_architecture()
    elif call.device != "cpu" or not INTERPRETED:
        hint = ", or on 'cpu' in the interpreter (TRITON_INTERPRET=1)" if call.device == "cpu" else ""
        found.append(f"device is {call.device!r}, the Triton kernels run on 'cuda'{hint}")
    found += unserved(call, _DTYPES)
    rows = _rows(call)
    if rows > _LARGEST:
        found.append(f"{rows} pixels × groups of the input are above {_LARGEST}, the largest 32-bit index")
    return found


def _rows(call: Call) -> int:
    """The most rows that a kernel indexes: pixels × groups, padding counted in."""
    if call.spec.is_linear:
        return prod(call.x_shape[:-1])
    batch, _, height, width = call.x_shape
    pads = call.spec.padding
    return batch * (height + 2 * pads[0]) * (width + 2 * pads[1]) * call.spec.groups


@cache
def _architecture(index: int | None = None) -> str:
    """``sm_<capability>`` or ``gfx<name>`` of a GPU; "interpreter" without one."""
    if not torch.cuda.is_available():
        return "interpreter"
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def _unserved_architecture() -> list[str]:
    arch = _architecture()
    if arch.startswith("sm_") and int(arch[3:]) < 80:
        return [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"]
    return []


def linear(x, weight, bias, b, *rest):
    """``bcos_kernels::linear`` of :mod:`bcos_kernels.ops`."""
    y, n, l, winner = _forward(_image(x), _image(weight), bias, b, rest, is_linear=True)  # noqa: E741
    return tuple(_rows_of(t) for t in (y, n, l, winner))


def conv2d(x, weight, bias, b, *rest):
    """``bcos_kernels::conv2d`` of :mod:`bcos_kernels.ops`."""
    outputs = _forward(x, weight, bias, b, rest)
    if _is_channels_last(x) or _is_channels_last(weight):
        return outputs
    return tuple(t.contiguous() for t in outputs)


def linear_backward(grad, x, weight, b, y, n, l, winner, *rest):  # noqa: E741
    """``bcos_kernels::linear_backward`` of :mod:`bcos_kernels.ops`."""
    images = (None if t is None or t.numel() == 0 else _image(t) for t in (y, n, l, winner))
    dx, dweight, dbias, db = _backward(_image(grad), _image(x), _image(weight), b, tuple(images), rest, is_linear=True)
    return _rows_of(dx), _rows_of(dweight), dbias, db


def conv2d_backward(grad, x, weight, b, y, n, l, winner, *rest):  # noqa: E741
    """``bcos_kernels::conv2d_backward`` of :mod:`bcos_kernels.ops`."""
    dx, *others = _backward(grad, x, weight, b, (y, n, l, winner), rest)
    return dx if dx.dim() == 1 or _is_channels_last(x) else dx.contiguous(), *others


def _forward(x: Tensor, weight: Tensor, bias, b, rest: tuple, is_linear: bool = False):
    p = problem(x, weight, bias is not None, b is not None, rest[:-1], rest[-1], is_linear)
    with _on_device_of(x):
        return _layer().forward(p, x, weight, bias, b)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, b, saved: tuple, rest: tuple, is_linear: bool = False):
    *arguments, explain, needs = rest
    p = problem(x, weight, needs[2], b is not None, tuple(arguments), grad.dtype, is_linear)
    with _on_device_of(x):
        layer = _layer()
        grads = layer.backward(p, grad, x, weight, b, layer.Saved(*saved), explain, needs)
    return tuple(x.new_empty(0) if g is None else g for g in grads)


def problem(x: Tensor, weight: Tensor, bias: bool, tensor_b: bool, rest: tuple, out_dtype, is_linear=False) -> Problem:
    """The call of an operator in numbers; ``rest`` is its geometry and formula, in the order of the schemas."""
    arch = _architecture(x.device.index) if x.is_cuda else "interpreter"
    return _problem(
        x.shape, weight.shape, tuple(tuple(a) if isinstance(a, list) else a for a in rest), bias, tensor_b,
        x.dtype, weight.dtype, out_dtype, x.dtype == torch.float32 and _allows_tf32(is_linear), arch, is_linear,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _problem(x_shape, weight_shape, rest, bias, tensor_b, dtype, weight_dtype, out_dtype, tf32, arch, is_linear):
    geometry, (max_out, exponent, unit, inside, outside, cos_eps, exact_two) = rest[:-7], rest[-7:]
    stride, padding, dilation, groups = geometry or ((1, 1), (0, 0), (1, 1), 1)
    return Problem(
        tuple(x_shape), tuple(weight_shape), stride, padding, dilation, groups, max_out, 0.0 if tensor_b else exponent,
        unit, (inside, outside, cos_eps), exact_two, bias, dtype, weight_dtype, out_dtype, tf32, arch, is_linear,
    )  # fmt: skip


def _layer():
    from . import layer

    return layer


def _on_device_of(x: Tensor):
    """Triton starts kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()


def _allows_tf32(is_linear: bool) -> bool:
    backends = torch.backends
    chain = (backends.cuda.matmul,) if is_linear else (backends.cudnn.conv, backends.cudnn)
    settings = (place.fp32_precision for place in (*chain, backends))
    return next((setting for setting in settings if setting != "none"), "ieee") == "tf32"


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _image(rows: Tensor) -> Tensor:
    """``[M, K]`` as images of one pixel, ``[M, K, 1, 1]``."""
    return rows.contiguous()[:, :, None, None]


def _rows_of(images: Tensor) -> Tensor:
    return images[:, :, 0, 0] if images.dim() == 4 else images
