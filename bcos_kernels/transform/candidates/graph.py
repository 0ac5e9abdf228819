"""The candidate graph: the vendor's products with the formula fused around them, as graphs that cuDNN compiles."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...gpu.cost import Kernel
from .. import cuda, traffic
from ..call import HALF, Call
from ..layout import candidate
from ..traffic import Sizes

__all__ = ["CANDIDATES"]

NAME = "graph"


def _kernels(call: Call, direction: str) -> Iterator[Kernel]:
    s = Sizes(call)
    if direction == "forward":
        if call.power != 1 and not cuda.forms_both_norms(call):
            yield Kernel(s.x + s.squares)
            if call.taps > 1:
                yield Kernel(s.squares + s.n)
        yield Kernel(s.seen + s.w + s.n + s.y + s.saved, s.flops, own=False)
    elif direction == "explanation":
        yield Kernel(s.grad + s.w + s.x, s.flops, own=False)
    else:
        t = s.t(call, direction)
        yield Kernel(s.grad + s.z + t)
        if call.taps > 1:
            yield Kernel(t + s.squares)
        yield Kernel(s.z + s.squares + s.w + 2 * s.x, s.flops, own=False)
        yield Kernel(s.z + s.seen + s.w, s.flops, own=False)
        yield Kernel(2 * s.w)


def _cost(call: Call, direction: str) -> float:
    with_norm = direction == "forward" and cuda.forms_both_norms(call)
    return traffic.seconds(call, _kernels(call, direction), with_norm=with_norm)


def _serves(call: Call, direction: str) -> bool:
    """Whether a graph of the call exists that leaves a pass out; whether cuDNN takes it is its refusal to say."""
    if (
        not call.planar
        or call.groups > 1
        or call.max_out > 1
        or call.tensor_b
        or (call.dtype not in HALF and not call.tf32)
    ):
        return False
    if direction == "forward":
        return call.unit or call.bias or call.power != 1
    if direction == "training" and call.spec.detach:  # the scale is frozen: there is no norm's part of dx
        return False
    return call.power != 1 and (call.pixelwise or (direction == "training" and call.stride == (1, 1)))


CANDIDATES = (
    candidate(
        "cuda", NAME, partial(cuda.forward, NAME), partial(cuda.backward, NAME), _serves,
        cost=_cost, refusal=cuda.graph_why_not, takes_gradient_map=True,
    ),
)  # fmt: skip
