"""The CUDA kernels for GPU tensors (``csrc/norm/cuda``): fp64, fp32, fp16, bf16, NCHW, channels_last, tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.candidate import Backend, Candidate
from ..gpu import cuda
from . import rows, traffic
from .call import Call
from .spec import Inputs, Outputs
from .unserved import unserved

__all__ = ["BACKEND", "CANDIDATES", "why_not"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MOST_POSITIONS = 2**31 - 1  # the largest index of 32 bits


def why_not(call: Call) -> list[str]:
    """The reasons why the CUDA kernels do not serve ``call``; empty where they do."""
    return cuda.unavailable(call.device) + unserved(call, _DTYPES, _MOST_POSITIONS)


def forward(inputs: Inputs, call: Call, tile: None) -> tuple[Tensor, ...]:
    """The outputs; y is in x's memory format."""
    return cuda.kernels.norm_forward(*inputs, call.spec.native)


def backward(
    grad: Tensor | None,
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
    dx, dweight, dbias = cuda.kernels.norm_backward(
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
    dgrad, dweight, dvar = cuda.kernels.norm_second(
        v, grad, x, weight, mean, var, saved.mean, saved.var, call.spec.native, needs
    )
    return dgrad, None, _like(dweight, weight), None, None, None, *(() if dvar is None else (dvar,))


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or parameter is None else gradient.to(parameter.dtype)


BACKEND = Backend("cuda", why_not, interchangeable=True)
CANDIDATES = (
    Candidate(
        "cuda", "kernels", forward, backward, cost=traffic.cost, second=second, gradient_map=gradient_map,
        takes_rows=rows.taken(why_not),
    ),
)  # fmt: skip
