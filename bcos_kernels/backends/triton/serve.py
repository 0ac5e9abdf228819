"""A call as :mod:`bcos_kernels.ops` makes it, served by the Triton kernels, which know images alone."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from ..gpu.choice import Choice
from ..gpu.problem import Problem
from . import layer

__all__ = ["backward", "forward"]


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> tuple:
    """(y, n, l, winner) of x ``[N, C, H, W]``, channels_last, or ``[M, K]``; empty where the problem has none."""
    with _on_device_of(x):
        outputs = layer.forward(p, choice, _image(x), _image(weight), bias, b)
    return tuple(map(_rows_of, outputs)) if p.is_linear else outputs


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved, explain: bool, needs
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    saved = layer.Saved(*map(_image, saved))
    with _on_device_of(x):
        grads = layer.backward(p, choice, _image(grad), _image(x), _image(weight), b, saved, explain, needs)
    return (*map(_rows_of, grads[:2]), *grads[2:]) if p.is_linear else grads


def _on_device_of(x: Tensor):
    """Triton starts kernels on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda and x.get_device() != torch.cuda.current_device() else nullcontext()


def _image(t: Tensor | None) -> Tensor | None:
    """``[M, K]`` as images of one pixel, ``[M, K, 1, 1]``."""
    return t.contiguous()[:, :, None, None] if t is not None and t.dim() == 2 else t


def _rows_of(images: Tensor | None) -> Tensor | None:
    return images[:, :, 0, 0] if images is not None and images.dim() == 4 else images
