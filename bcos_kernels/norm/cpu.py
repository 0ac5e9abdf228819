"""The C++ kernels for CPU tensors (``csrc/norm/cpu``): fp32, fp64, bf16 and fp16, NCHW, channels_last and tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import dispatch, extension, half
from ..core.candidate import Backend, Candidate
from . import rows
from .call import Call
from .spec import Inputs, Outputs

__all__ = ["BACKEND", "CANDIDATES", "why_not"]

_C: Any
_C, _ = extension.load()
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def why_not(call: Call) -> list[str]:
    """The reasons why the C++ kernels do not serve ``call``; empty where they do."""
    return extension.unavailable(call.device) + dispatch.other_dtype(call.dtype, _DTYPES)


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    return _C.norm_forward(*inputs, call.spec.native)


def backward(
    grad: Tensor,
    inputs: Inputs,
    saved: Outputs,
    call: Call,
    tile: None,
    frozen: bool,
    needs,
    joined=(None,),
    as_map: bool = False,
) -> tuple:
    """The gradients of x, weight and bias; one not needed is None. ``frozen`` makes the variance a constant.

    ``joined`` holds the gradient of var that :func:`second` returned; beside it ``grad`` may be None. Several gradients
    of every image, ``[T·N, ...]``, are rows of the dynamic linear map: see ``Candidate.takes_rows``. With ``as_map``
    the map of dx stands in its place: see ``Candidate.gradient_map``.
    """
    if grad is None:
        grad = torch.zeros_like(inputs.x, dtype=call.spec.out_dtype)
    (x, weight, bias, mean, var), saved, call = rows.as_images(grad, inputs, saved, call)
    dx, dweight, dbias = _C.norm_backward(
        grad, x, weight, mean, var, saved.mean, saved.var, *joined, call.spec.native, frozen, list(needs[:3]), as_map
    )
    return dx, _like(dweight, weight), _like(dbias, bias), None, None


def gradient_map(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, needs, joined) -> tuple:
    """The gradients with the map of dx in its place."""
    return backward(grad, inputs, saved, call, None, frozen, needs, joined, as_map=True)


def second(v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted) -> tuple:
    """The gradients of ⟨v, dx⟩: those of grad, x, weight, bias, mean, var and the variance of the forward."""
    x, weight, _, mean, var = inputs
    needs = [wanted[2], bool(call.intermediates)]
    dgrad, dweight, dvar = _C.norm_second(v, grad, x, weight, mean, var, saved.mean, saved.var, call.spec.native, needs)
    return dgrad, None, _like(dweight, weight), None, None, None, *(() if dvar is None else (dvar,))


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or parameter is None else gradient.to(parameter.dtype)


def kernels(call: Call, by_operators):
    """Both directions without a step through Python."""
    return _C.norm_kernels(call.spec.native, call.spec.detach, by_operators)


BACKEND = Backend("cpu", why_not)
_KERNELS = Candidate(
    "cpu", "kernels", forward, backward, second=second, gradient_map=gradient_map, kernels=kernels,
    takes_rows=rows.taken(why_not),
)  # fmt: skip
CANDIDATES = (half.through_fp32(_KERNELS),)
