"""The memory format of results on a GPU: the kernels compute in NHWC, the caller gets the format of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.candidate import Candidate
from .call import Call
from .spec import Inputs

__all__ = ["candidate"]


def candidate(backend: str, name: str, forward: Callable | None, backward: Callable, *rest, **facts) -> Candidate:
    """A candidate made of functions that return NHWC: its outputs and dx are in the memory format of the inputs."""

    def forward_as_given(inputs: Inputs, call: Call, tile) -> tuple[Tensor, ...]:
        outputs = forward(inputs, call, tile)  # type: ignore[misc]
        x, weight = inputs[:2]
        if call.is_linear or _is_channels_last(x) or _is_channels_last(weight):
            return outputs
        return tuple(t.contiguous() for t in outputs)

    def backward_as_given(grad: Tensor, inputs: Inputs, *rest) -> tuple[Tensor | None, ...]:
        dx, *others = backward(grad, inputs, *rest)
        if dx is not None and dx.dim() == 4 and not _is_channels_last(inputs.x):
            dx = dx.contiguous()
        return dx, *others

    return Candidate(backend, name, forward and forward_as_given, backward_as_given, *rest, **facts)


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
