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

__all__ = ["CANDIDATES", "TMA"]

NAME, WITH_VENDOR = "tma", "tma-vendor"
READ, FORMED, BOTH = 7, 14, 26
"""The instructions of a thread for each value of x that the forward reads for its norm, of u that the explanation
forms, and of u that the kernel of both gradients forms and uses."""
AGAIN = {"explanation": 11, "training": 18}
"""Those for each value of u where l is formed again from x."""
WITH_U = {64: (18, 15), 32: (24, 19), 16: (34, 29)}
"""A step's filters -> those for each value of u that the kernel of dx and u forms, and where l is formed again."""
GENERAL = {"explanation": 31, "training": 50}
"""Those that a b beside 1 and 2 adds for each value of u."""
WRITTEN = {"forward": 8, "explanation": 3, "training": 7}
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
        yield Kernel(grad + s.seen + s.x + s.w, (2 + again) * s.flops, True, formed)
        yield Kernel(2 * 4.0 * call.filters * call.channels * max(1, PROGRAMS // parts))
        yield Kernel(2 * s.w)
        return
    columns, depth = (call.filters, call.channels) if forward else (call.channels, call.filters)
    each = READ if forward else AGAIN[direction] if again else FORMED
    each += GENERAL[direction] * (call.power == 0) if not forward else 0
    walked = each * depth * -(-columns // tile.n)
    moved = s.seen + s.w + s.y + s.saved + s.n if forward else s.x + again * s.seen + s.w + grad
    yield Kernel(moved, (1 + again) * s.flops, True, float(call.pixels) * (walked + WRITTEN[direction] * columns))


def _cost(call: Call, direction: str) -> float:
    return traffic.seconds(call, _kernels(call, direction), tma_tiles.SHARE)


def _serves(call: Call, direction: str) -> bool:
    return not tma_tiles.why_not(call, direction)


def _vendor_kernels(call: Call) -> Iterator[Kernel]:
    s, tile = Sizes(call), tma_tiles.tiles_of_product(call, "training")[0]
    again = tma_tiles.forms_l(call, "training", tile, True)
    each = WITH_U[tile.k][again] + GENERAL["training"] * (call.power == 0)
    walked = each * call.filters * -(-call.channels // tile.n)
    moved = s.grad - again * s.y + s.z + s.w + s.seen + s.x
    formed = float(call.pixels) * (walked + WRITTEN["training"] * call.channels)
    yield Kernel(moved, (1 + again) * s.flops, True, formed)
    yield Kernel(s.z + s.seen + s.w, s.flops, own=False)
    yield Kernel(2 * s.w)


def _vendor_cost(call: Call, direction: str) -> float:
    return traffic.seconds(call, _vendor_kernels(call), tma_tiles.SHARE)


def _serves_with_vendor(call: Call, direction: str) -> bool:
    return direction == "training" and not call.tensor_b and not tma_tiles.why_not(call, "explanation")


def _tiles_with_vendor(call: Call, direction: str):
    return tma_tiles.tiles_of_product(call, "training")


TMA = candidate(
    "triton", NAME, partial(triton.forward, NAME), partial(triton.backward, NAME), _serves, tma_tiles.tiles, _cost,
    takes_gradient_map=True,
)  # fmt: skip
CANDIDATES = (
    TMA,
    candidate(
        "triton", WITH_VENDOR, None, partial(triton.backward, WITH_VENDOR),
        _serves_with_vendor, _tiles_with_vendor, _vendor_cost, takes_gradient_map=True,
    ),
)  # fmt: skip
