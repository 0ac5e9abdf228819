"""The launches of a call, found without a GPU: for compiling kernels ahead of time and for checking them."""

from __future__ import annotations

import torch

from ...gpu.launch import Launch, recording
from ..call import Call
from ..spec import Inputs, Outputs
from . import layer

__all__ = ["launches"]


def launches(call: Call, direction: str) -> list[Launch]:
    """The launches of one direction of the call, on tensors of the meta device."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=call.dtype, device="meta")

    rows = call.patch * call.outputs
    h = empty(call.x_shape[0], call.rank, *call.size).contiguous(memory_format=torch.channels_last)
    inputs = Inputs(empty(*call.x_shape), h, empty(rows, call.rank), empty(rows) if call.bias else None)
    with recording() as forward:
        y, *saved = layer.forward(inputs, call)
    if direction == "forward":
        return forward
    needs, frozen = (True, *[direction == "training"] * 3), direction == "explanation"
    with recording() as backward:
        layer.backward(torch.empty_like(y), inputs, Outputs(y, *saved), call, frozen, needs)
    return backward
