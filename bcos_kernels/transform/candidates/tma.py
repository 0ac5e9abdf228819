"""The candidate tma, for 1×1 convolutions and linear layers on sm_90 and later, in Triton: one kernel a direction.

TMA copies the tiles. The forward takes the norm from the tiles of x, the explanation forms u in its product, and one
kernel forms both gradients from one reading of all tensors, where filters are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...gpu.cost import Kernel
from .. import traffic, triton
from ..call import Call
from ..layout import candidate
from ..traffic import Sizes
from ..triton import tma_tiles

__all__ = ["CANDIDATES"]

NAME = "tma"
READ, FORMED, BOTH = 7, 14, 26
"""The instructions of a thread for each value of x that the forward reads for its norm, of u that the explanation
forms, and of u that the kernel of both gradients forms and uses."""
AGAIN = {"explanation": 11, "training": 18}
"""Those for each value of u where l is formed again from x."""
WRITTEN = {"forward": 8, "explanation": 3}
"""Those for each value of y and of dx at the end of a tile. All are counted in binaries for sm_90, where
``python -m benchmarks.triton_aot`` shows the instructions of a loop."""
PROGRAMS = 132
"""The programs that are assumed to form parts of dw."""


def _kernels(call: Call, direction: str) -> Iterator[Kernel]:
    s, tile = Sizes(call), tma_tiles.tiles(call, direction)[0]
    forward = direction == "forward"
    again = not forward and tma_tiles.forms_l(call, direction, tile)
    grad = s.grad - again * s.y
    if direction == "training":
        parts = -(-call.channels // tile.n)
        formed = float(AGAIN[direction] if again else BOTH) * call.pixels * max(call.filters, tile.k) * parts
        yield Kernel(grad + 2 * s.x + s.w, (2 + again) * s.flops, True, formed)
        yield Kernel(2 * 4.0 * call.filters * call.channels * max(1, PROGRAMS // parts))
        yield Kernel(2 * s.w)
        return
    columns, depth = (call.filters, call.channels) if forward else (call.channels, call.filters)
    each = READ if forward else AGAIN[direction] if again else FORMED
    walked = each * depth * -(-columns // tile.n)
    moved = (1 + again) * s.x + s.w + (s.y + s.saved + s.n if forward else grad)
    yield Kernel(moved, (1 + again) * s.flops, True, float(call.pixels) * (walked + WRITTEN[direction] * columns))


def _cost(call: Call, direction: str) -> float:
    return traffic.seconds(call, _kernels(call, direction), tma_tiles.SHARE)


def _serves(call: Call, direction: str) -> bool:
    return not tma_tiles.why_not(call, direction)


def _forward(inputs, call: Call, tile):
    kernels = triton.kernels()
    return kernels.forward(kernels.tma.forward, inputs, call, tile)


def _backward(grad, inputs, saved, call: Call, tile, frozen: bool, needs, gradient_map=None):
    kernels = triton.kernels()
    products = partial(kernels.tma.backward, bias=inputs.bias)
    return kernels.backward(products, grad, inputs, saved, call, tile, frozen, needs, gradient_map=gradient_map)


CANDIDATES = (candidate("triton", NAME, _forward, _backward, _serves, tma_tiles.tiles, _cost, takes_gradient_map=True),)
