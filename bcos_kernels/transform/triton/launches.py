"""The launches of a call, found without a GPU: for compiling kernels ahead of time and for checking them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.candidate import Candidate, Tile
from ...core.formats import CHANNELS_LAST
from ...gpu.launch import Launch, recording
from .. import TRANSFORM
from ..call import Call
from ..spec import Inputs, Outputs

__all__ = ["launches"]


def launches(
    call: Call, direction: str, candidate: str, tile: Tile | None = None, channels_last: bool = True
) -> list[Launch]:
    """The launches of one direction of the call by Triton's candidate of this name, on tensors of the meta device.

    The direction "second" is the second derivatives of both backwards, and the backward that takes them on. Where the
    candidate serves no forward, ``vendor`` serves the forward before its backward.
    """

    def empty(shape, dtype: torch.dtype) -> Tensor:
        form = CHANNELS_LAST.get(len(shape)) if channels_last else None
        return torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=form or torch.contiguous_format)

    named = {c.name: c for c in TRANSFORM.candidates_of("triton")}
    x, weight = empty(call.x_shape, call.dtype), empty(call.weight_shape, call.weight_dtype)
    bias = weight.new_empty(call.filters) if call.bias else None
    b = x.new_empty((), dtype=torch.float32) if call.tensor_b else None
    inputs = Inputs(x, weight, bias, b)
    first = named[candidate] if named[candidate].forward else named["vendor"]
    assert first.forward is not None
    with recording() as forward:
        outputs = Outputs(*first.forward(inputs, call, tile if direction == "forward" else None))
    if direction == "forward":
        return forward
    grad, frozen = torch.empty_like(outputs.y), direction == "explanation"
    saved = (outputs.y if call.spec.saves_output else None, *outputs[1:])
    if direction == "map":
        gradient_map = x.new_empty(4, call.outputs, dtype=call.sums)
        with recording() as paired:
            named[candidate].backward(
                grad, inputs, saved, call, tile, frozen, call.needs("training"), gradient_map=gradient_map
            )
        return paired
    if direction == "second":
        return _second(named[candidate], grad, inputs, saved, call)
    with recording() as backward:
        named[candidate].backward(grad, inputs, saved, call, tile, frozen, call.needs(direction))
    return backward


def _second(candidate: Candidate, grad: Tensor, inputs: Inputs, saved: tuple, call: Call) -> list[Launch]:
    assert candidate.second is not None
    with recording() as started:
        for frozen in (True, False):
            found = candidate.second(torch.empty_like(inputs.x), grad, inputs, saved, call, frozen, (True,) * 5)
            if joined := found[5:]:
                candidate.backward(grad, inputs, saved, call, None, frozen, call.needs("training"), joined)
    return started
