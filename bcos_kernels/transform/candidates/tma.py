"""The candidate tma, for 1×1 convolutions and linear layers on sm_90 and later, in Triton: one kernel a direction.

TMA copies the tiles. The forward takes the norm from the tiles of x, the explanation forms u in its product, and one
kernel forms both gradients from one reading of all tensors, where filters are few.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...gpu.cost import Kernel
from .. import traffic, triton
from ..call import Call
from ..layout import candidate
from ..traffic import Sizes
from ..triton import tma_tiles

__all__ = ["CANDIDATES"]

NAME = "tma"
SHARE = {"sm_90": 0.75, "sm_100": 0.6}
"""Architecture -> the rate of these kernels' products as a share of the vendor's; assumed, until ``tune`` measures."""

READ, FORMED, BOTH = 7, 14, 19
"""The instructions of a thread for each value of x that the forward reads for its norm, of u that the explanation
forms, and of u that the kernel of both gradients forms and uses."""
WRITTEN = {"forward": 8, "explanation": 3}
"""Those for each value of y and of dx at the end of a tile. All are counted in binaries for sm_90, where
``python -m benchmarks.triton_aot`` shows the instructions of a loop."""
PROGRAMS = 132
"""The programs that are assumed to form parts of dw."""


def _kernels(call: Call, direction: str) -> Iterator[Kernel]:
    s, tile = Sizes(call), tma_tiles.tiles(call, direction)[0]
    if direction == "training":
        parts = -(-call.channels // tile.n)
        formed = float(BOTH) * call.pixels * max(call.filters, tile.k) * parts
        yield Kernel(s.grad + 2 * s.x + s.w, 2 * s.flops, True, formed)
        yield Kernel(2 * 4.0 * call.filters * call.channels * max(1, PROGRAMS // parts))
        yield Kernel(2 * s.w)
        return
    forward = direction == "forward"
    columns, depth = (call.filters, call.channels) if forward else (call.channels, call.filters)
    walked = (READ if forward else FORMED) * depth * -(-columns // tile.n)
    moved = s.x + s.w + (s.y + s.saved + s.n if forward else s.grad)
    yield Kernel(moved, s.flops, True, float(call.pixels) * (walked + WRITTEN[direction] * columns))


def _cost(call: Call, direction: str) -> float:
    return traffic.seconds(call, _kernels(call, direction), SHARE)


def _serves(call: Call, direction: str) -> bool:
    return not tma_tiles.why_not(call, direction)


def _forward(inputs, call: Call, tile):
    kernels = triton.kernels()
    return kernels.forward(kernels.tma.forward, inputs, call, tile)


def _backward(grad, inputs, saved, call: Call, tile, frozen: bool, needs, gradient_map=None):
    kernels = triton.kernels()
    return kernels.backward(
        kernels.tma.backward, grad, inputs, saved, call, tile, frozen, needs, gradient_map=gradient_map
    )


CANDIDATES = (candidate("triton", NAME, _forward, _backward, _serves, tma_tiles.tiles, _cost, takes_gradient_map=True),)
