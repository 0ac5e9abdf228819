"""The candidate vendor: products by cuDNN and cuBLAS, and our kernels for the rest. It serves every call on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...core.candidate import Backend
from ...gpu.cost import Kernel
from .. import cuda, traffic, triton
from ..call import Call
from ..layout import candidate
from ..traffic import Sizes

__all__ = ["CANDIDATES"]

NAME = "vendor"


def _kernels(call: Call, direction: str) -> Iterator[Kernel]:
    s = Sizes(call)
    if direction == "forward":
        if call.power != 1:
            yield Kernel(s.x + s.squares)
        yield Kernel(s.seen + s.w + s.z, s.flops, own=False)
        if call.power != 1 and call.taps > 1 and not call.flat:
            yield Kernel(s.squares + s.n)
        if call.unit or call.power != 1 or call.max_out > 1:
            yield Kernel(s.z + s.n + s.y + s.saved)
        return
    t = s.t(call, direction)
    yield Kernel(s.grad + s.z + t)
    yield Kernel(s.z + s.w + s.x, s.flops, own=False)
    if s.pooled(call, direction):
        if call.divides_x:
            yield Kernel(s.x + t)
        yield Kernel(t + call.divides_x * t + 3 * s.x)
    if direction == "training":
        yield Kernel(s.z + s.seen + s.w, s.flops, own=False)
        yield Kernel(2 * s.w)


def _cost(call: Call, direction: str) -> float:
    return traffic.seconds(call, _kernels(call, direction))


def _takes_rows(backend: Backend, call: Call, rows: int) -> bool:
    return not backend.why_not(call.of_rows(rows))


CANDIDATES = tuple(
    candidate(
        backend.BACKEND.name, NAME, partial(backend.forward, NAME), partial(backend.backward, NAME), cost=_cost,
        second=partial(backend.second, NAME), takes_gradient_map=True, takes_rows=partial(_takes_rows, backend.BACKEND),
    )
    for backend in (cuda, triton)
)  # fmt: skip
