"""The bytes that the kernels of a norm move on a GPU, from which costs are predicted."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..gpu.cost import Kernel, rates
from .call import Call

__all__ = ["cost", "kernels"]


def kernels(call: Call, direction: str) -> Iterator[Kernel]:
    """The kernels of one direction. Those that add up partial sums move few bytes, but each has to be started."""
    values = prod(call.x_shape)
    x, y = values * call.dtype.itemsize, values * call.spec.out_dtype.itemsize
    training, at_positions = direction == "training", call.spec.over == "position"
    if direction == "forward":
        if not (call.given or at_positions):
            yield Kernel(x)
            yield Kernel(0)
        yield Kernel(x + y)
        return
    parameters = call.weight or call.bias
    shared = not (call.given or at_positions) and (training or call.spec.centered)
    if shared or (call.given and parameters):
        yield Kernel(y + x * training)
        yield Kernel(0)
    yield Kernel(y + x + x * (training and not call.given))
    if at_positions and parameters:
        yield Kernel(0)


def cost(call: Call, direction: str) -> float:
    """The predicted seconds."""
    reached = rates(call.arch)
    return sum(reached.seconds(kernel, reached.fp32) for kernel in kernels(call, direction))
