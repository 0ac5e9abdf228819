"""The candidate one-pass: our own products compute the norm, the scale and their derivatives as well."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...gpu.cost import Kernel
from .. import cuda, traffic, triton
from ..call import Call
from ..layout import candidate
from ..traffic import Products, Sizes

__all__ = ["CANDIDATES"]

NAME = "one-pass"


def _kernels(call: Call, direction: str, products: Products) -> Iterator[Kernel]:
    s = Sizes(call)
    if not call.depthwise:
        if direction == "forward":
            yield from traffic.own_forward(call, products)
        else:
            yield from traffic.own_gradients(call, direction, products, given=False)
            if direction == "training":
                yield Kernel(2 * s.w)
    elif direction == "forward":
        yield Kernel(s.x + s.w + s.y + s.saved, s.depthwise_flops)
    else:
        t = s.t(call, direction)
        yield Kernel(s.x + s.grad + s.z + t, s.depthwise_flops)
        yield Kernel(s.z + t + s.pooled(call, direction) + s.w + s.x, s.depthwise_flops)
        if direction == "training":
            yield Kernel(s.z + s.x + s.w, s.flops)
            yield Kernel(2 * s.w)


def _cuda_serves(call: Call, direction: str) -> bool:
    if not cuda.serves_products(call):
        return False
    # Products that form u themselves cannot share a tile among narrow groups.
    return direction == "forward" or call.depthwise or (call.pack == 1 and (call.power == 1 or call.saves_norm))


def _triton_serves(call: Call, direction: str) -> bool:
    if not triton.serves_products(call):
        return False
    if direction == "forward" or call.depthwise:
        return True
    # A maximum, or the power and its slope, would not fit the registers beside a product's tile.
    return call.pack == 1 and call.max_out == 1 and (call.power == 1 or (call.power == 2 and call.saves_norm))


CANDIDATES = tuple(
    candidate(
        backend.BACKEND.name, NAME, partial(backend.forward, NAME), partial(backend.backward, NAME), serves,
        partial(backend.PRODUCTS.tiles, given=False), traffic.cost(_kernels, backend.PRODUCTS),
    )
    for backend, serves in ((cuda, _cuda_serves), (triton, _triton_serves))
)  # fmt: skip
