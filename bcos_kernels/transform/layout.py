"""The memory format of results on a GPU: the kernels compute in NHWC, the caller gets the format of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.candidate import Candidate
from ..core.formats import suggests_channels_last
from .call import Call
from .spec import Inputs

__all__ = ["candidate"]


def candidate(
    backend: str,
    name: str,
    forward: Callable | None,
    backward: Callable,
    serves: Callable[[Call, str], bool] = lambda call, direction: True,
    *rest,
    second: Callable | None = None,
    **facts: Any,
) -> Candidate:
    """A candidate made of functions that return NHWC: its outputs, dx and dgrad are in the memory format of the inputs.

    ``second`` takes what :attr:`bcos_kernels.core.candidate.Candidate.second` takes, except that ``wanted`` is for x
    and weight alone; it returns the gradients of grad, x, weight, n and l. Only a candidate that has it divides x.
    """

    def forward_as_given(inputs: Inputs, call: Call, tile) -> tuple[Tensor, ...]:
        outputs = forward(inputs, call, tile)  # type: ignore[misc]
        x, weight = inputs[:2]
        if call.is_linear or suggests_channels_last(x) or suggests_channels_last(weight):
            return outputs
        return tuple(t.contiguous() for t in outputs)

    def backward_as_given(grad: Tensor | None, inputs: Inputs, *rest, **options) -> tuple[Tensor | None, ...]:
        if grad is None:  # there are only the gradients of n and l, the last argument
            grad = torch.zeros_like(rest[-1][1])
        dx, *others = backward(grad, inputs, *rest, **options)
        return _as_given(dx, inputs.x), *others

    def second_as_given(v: Tensor, grad: Tensor, inputs: Inputs, saved, call: Call, frozen: bool, wanted) -> tuple:
        found = second(v, grad, inputs, saved, call, frozen, tuple(wanted[1:3]))  # type: ignore[misc]
        dgrad, dx, dweight, *joined = found
        joined = [t for t in joined if t is not None]
        return _as_given(dgrad, grad), _as_given(dx, inputs.x), dweight, None, None, *joined

    def serves_undivided(call: Call, direction: str) -> bool:
        return serves(call, direction) and not (call.divides_x and direction == "training")

    if second is not None:
        facts["second"] = second_as_given
    served = serves if second is not None else serves_undivided
    return Candidate(backend, name, forward and forward_as_given, backward_as_given, served, *rest, **facts)


def _as_given(t: Tensor | None, like: Tensor) -> Tensor | None:
    return t.contiguous() if t is not None and t.dim() > 2 and not suggests_channels_last(like) else t
