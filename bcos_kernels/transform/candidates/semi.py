"""The candidate semi, for backwards only: one kernel forms u = ∂L/∂z and t, and our own products take them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ...gpu.cost import Kernel
from .. import cuda, traffic, triton
from ..call import Call
from ..layout import candidate
from ..traffic import Products, Sizes

__all__ = ["CANDIDATES"]

NAME = "semi"


def _kernels(call: Call, direction: str, products: Products) -> Iterator[Kernel]:
    s = Sizes(call)
    yield Kernel(s.grad + s.z + s.t(call, direction))
    yield from traffic.own_gradients(call, direction, products, given=True)
    if direction == "training":
        yield Kernel(2 * s.w)


def _cuda_serves(call: Call, direction: str) -> bool:
    return cuda.serves_products(call) and not call.depthwise


def _triton_serves(call: Call, direction: str) -> bool:
    return triton.serves_products(call) and not call.depthwise


CANDIDATES = (
    candidate(
        "cuda", NAME, None, partial(cuda.backward, NAME),
        _cuda_serves, partial(cuda.PRODUCTS.tiles, given=True), traffic.cost(_kernels, cuda.PRODUCTS),
        takes_gradient_map=True,
    ),
    candidate(
        "triton", NAME, None, partial(triton.backward, NAME),
        _triton_serves, partial(triton.PRODUCTS.tiles, given=True), traffic.cost(_kernels, triton.PRODUCTS),
        takes_gradient_map=True,
    ),
)  # fmt: skip
