"""The launches of a call, found without a GPU: for compiling kernels ahead of time and for checking them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...gpu.launch import Launch, recording
from ..call import Call
from ..spec import Inputs, Outputs
from . import layer

__all__ = ["launches"]


def launches(call: Call, direction: str) -> list[Launch]:
    """The launches of one direction of the call, on tensors of the meta device.

    The direction "second" is the second derivative of an explanation, and the backward that takes it on; "map" is the
    backward of a pair.
    """

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        t = torch.empty(shape, dtype=dtype, device="meta")
        last = call.channels_last and len(shape) == 4
        return t.contiguous(memory_format=torch.channels_last) if last else t

    def parameter(there: bool, dtype: torch.dtype = call.sums) -> Tensor | None:
        return empty(call.channels, dtype=dtype) if there else None

    x = empty(*call.x_shape, dtype=call.dtype)
    inputs = Inputs(
        x, parameter(call.weight, call.dtype), parameter(call.bias, call.dtype),
        parameter(call.given and call.spec.centered), parameter(call.given),
    )  # fmt: skip
    with recording() as forward:
        outputs = Outputs(*layer.forward(inputs, call))
    if direction == "forward":
        return forward
    grad = torch.empty_like(outputs.y)
    if direction == "second":
        needs = call.needs("training")
        with recording() as second:
            *_, dvar = layer.second(x, grad, inputs, outputs, call, wanted=True)
            for frozen in (True, False) if dvar is not None else ():
                layer.backward(grad, inputs, outputs, call.of_backward(needs), frozen, needs, (dvar,))
        return second
    needs, as_map = call.needs("training" if direction == "map" else direction), direction == "map"
    with recording() as backward:
        layer.backward(grad, inputs, outputs, call.of_backward(needs), direction == "explanation", needs, as_map=as_map)
    return backward
