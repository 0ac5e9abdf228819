"""The launches of a call, found without a GPU: for compiling kernels ahead of time and for checking them."""

from __future__ import annotations

import torch

from ..core.candidate import Tile
from ..core.op import Op
from .launch import Launch, recording

__all__ = ["launches"]


def launches(
    op: Op, call, direction: str, candidate: str = "kernels", tile: Tile | None = None, channels_last: bool = True
) -> list[Launch]:
    """The launches of one direction of the call by Triton's candidate of this name, on tensors of the meta device.

    The direction "second" is the second derivatives that the candidate forms, and the backwards that take them on;
    "map" is the backward of a pair, of the layer or of the norm. Where the candidate serves no forward, ``vendor``
    serves the forward before its backward. Unless ``channels_last``, the inputs are contiguous.
    """
    named = {c.name: c for c in op.candidates_of("triton")}
    chosen, first = named[candidate], named[candidate] if named[candidate].forward else named["vendor"]
    inputs, _ = call.example(torch.device("meta"))
    if not channels_last:
        inputs = inputs._make(t if t is None else t.contiguous() for t in inputs)
    assert first.forward is not None
    with recording() as forward:
        outputs = op.outputs._make(first.forward(inputs, call, tile if direction == "forward" else None))
    if direction == "forward":
        return forward
    y, *others = outputs
    grad, saved = torch.empty_like(y), op.outputs._make((y if call.spec.saves_output else None, *others))
    needs, joined = call.needs("explanation" if direction == "explanation" else "training"), ()
    with recording() as backward:
        if direction == "second":
            assert chosen.second is not None
            for frozen in (True, False):
                if call.has_second(frozen):
                    wanted = (True,) * (1 + len(inputs))
                    joined = chosen.second(inputs[0], grad, inputs, saved, call, frozen, wanted)[len(wanted) :]
                if joined:
                    chosen.backward(grad, inputs, saved, call, None, frozen, needs, joined)
        elif direction == "map" and chosen.gradient_map is not None:
            chosen.gradient_map(grad, inputs, saved, call, False, needs, (None,))
        elif direction == "map":
            gradient_map = y.new_empty(4, y.shape[1], dtype=call.sums)
            chosen.backward(grad, inputs, saved, call, tile, False, needs, gradient_map=gradient_map)
        else:
            chosen.backward(grad, inputs, saved, call, tile, direction == "explanation", needs)
    return backward
