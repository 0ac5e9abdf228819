"""The candidate semi, for backwards only: one kernel forms u = ∂L/∂z and t, and our own products take them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import ModuleType

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


def _serves(backend: ModuleType, call: Call, direction: str) -> bool:
    return backend.serves_products(call) and not call.depthwise


CANDIDATES = tuple(
    candidate(
        backend.BACKEND.name, NAME, None, partial(backend.backward, NAME), partial(_serves, backend),
        partial(backend.PRODUCTS.tiles, given=True), traffic.cost(_kernels, backend.PRODUCTS), takes_gradient_map=True,
    )
    for backend in (cuda, triton)
)  # fmt: skip
