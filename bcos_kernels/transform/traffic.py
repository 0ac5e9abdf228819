"""The bytes that the kernels of a transform move and the FLOP that they compute, from which costs are predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..core.candidate import Tile
from ..gpu.cost import Kernel, rates, share
from .call import Call

__all__ = [
    "FORMED", "LOADED", "Products", "Sizes", "cost", "own_forward", "own_gradients", "plain_seconds", "second",
    "seconds",
]  # fmt: skip

DEPTHWISE_SHARE = {True: 0.5, False: 0.2}
"""The share of the fp32 rate that a depthwise layer reaches, by our kernels (True) and by the vendor's; assumed."""

FORMED, LOADED = 25, 3
"""The instructions of a thread for each value of u that a product forms in its loop, and for each value that it only
loads; counted in binaries for sm_90 (``python -m benchmarks.triton_aot``)."""


@dataclass(frozen=True)
class Products:
    """The properties of the products that a backend computes with its own kernels."""

    share: Mapping[str, float]
    """Architecture -> their rate as a share of the vendor's; assumed."""
    padding: Callable[[Call], float]
    """The FLOP that they compute, as a multiple of the FLOP that the call needs."""
    tiles: Callable[..., list[Tile]]
    """``tiles(call, direction, given=)``: the tiles of the product that forms y or dx, the best guess first. ``given``
    says whether a kernel before the products forms u; else the products form it themselves."""
    wgrad_tile: Callable[[Call, bool], Tile]
    """``wgrad_tile(call, given)``: the tile of the product that forms dw."""


class Sizes:
    """The bytes of the tensors of a call, and the FLOP of its product."""

    def __init__(self, call: Call) -> None:
        element, out = call.dtype.itemsize, call.out_dtype.itemsize
        self.x = call.in_pixels * call.channels * element
        sampled = call.taps == 1 and max(call.stride) > 1
        self.seen = call.pixels * call.channels * element if sampled else self.x
        """Those of x that a product reads: a stride beside a window of one pixel leaves the others out."""
        self.w = call.filters * call.group_channels * call.taps * element
        self.z = call.pixels * call.filters * element
        self.y = call.pixels * call.outputs * out
        self.n = 0 if call.power == 1 else call.pixels * call.groups * 4
        self.squares = 0 if call.power == 1 else call.in_pixels * call.groups * 4
        self.winner = call.pixels * call.outputs * (call.max_out > 1)
        self.saved = self.y * call.saves_linear + self.winner
        self.grad = self.y * (1 if call.power == 1 else 2) + self.n + self.winner
        """The tensors from which u is formed."""
        self.flops = float(call.flops)
        self.depthwise_flops = 1.5 * self.flops
        """The product with the column sums of the norm or of the norm's gradient."""

    def t(self, call: Call, direction: str) -> int:
        """The bytes of t; 0 where the scale is frozen."""
        return (self.squares if call.depthwise else self.n) * (direction == "training")

    def pooled(self, call: Call, direction: str) -> int:
        """The bytes of x where the sums of t multiply it; else 0."""
        return self.x * (direction == "training" and call.power != 1)


def seconds(
    call: Call, kernels: Iterable[Kernel], shares: Mapping[str, float] | None = None, with_norm: bool = False
) -> float:
    """The predicted seconds of kernels that run one after the other, including the kernel that prepares the weights.

    ``with_norm`` says whether that kernel forms n as well.
    """
    s = Sizes(call)
    prepared = s.w * (1 if call.raw_weights else 2) * call.unit + (s.seen + s.n) * with_norm
    first = [Kernel(prepared)] if prepared else []
    return _seconds(call, (*first, *kernels), shares or {})


def _seconds(call: Call, kernels: Iterable[Kernel], shares: Mapping[str, float]) -> float:
    reached, own = rates(call.arch), share(shares, call.arch)
    rate = reached.products(call.dtype, call.tf32)

    def products(kernel: Kernel) -> float:
        if call.depthwise:
            return reached.fp32 * DEPTHWISE_SHARE[kernel.own]
        return rate * own if kernel.own else rate

    return sum(reached.seconds(kernel, products(kernel)) for kernel in kernels)


def cost(
    kernels: Callable[[Call, str, Products], Iterable[Kernel]], products: Products
) -> Callable[[Call, str], float]:
    """The cost of a candidate that starts these kernels with the products of a backend."""
    return lambda call, direction: seconds(call, kernels(call, direction, products), products.share)


def plain_seconds(call: Call, direction: str) -> float:
    """The seconds that the same model predicts for the plain layer, with which candidates are compared."""
    s = Sizes(call)
    of_seen, of_all = (Kernel(x + s.w + s.z, s.flops, own=False) for x in (s.seen, s.x))
    products = {"forward": [of_seen], "explanation": [of_all], "training": [of_all, of_seen]}
    return _seconds(call, products[direction], {})


def second(call: Call) -> Iterator[Kernel]:
    """The derivative of an explanation in the early mode, by the vendor's products; plain layers need two of them."""
    s = Sizes(call)
    yield Kernel(s.x + s.w + s.z, s.flops, own=False)
    yield Kernel(s.z + s.grad + s.y + s.z)
    yield Kernel(s.x + s.z + s.w, s.flops, own=False)
    yield Kernel(2 * s.w)


def _read(rows: int, depth: int, columns: int, tile: Tile, each: int) -> float:
    """The instructions of a product's loop, which reads its left operand once for every tile of columns."""
    return float(each) * rows * depth * -(-columns // tile.n)


def own_forward(call: Call, products: Products) -> Iterator[Kernel]:
    """Our own product that also computes the norm and the scale."""
    s, packs = Sizes(call), call.groups // call.pack
    sums_window = call.power != 1 and call.taps > 1 and not call.flat
    if sums_window:
        yield Kernel(s.x + s.squares)
    tile, width = products.tiles(call, "forward", False)[0], call.pack * call.group_channels
    issued = _read(call.pixels * packs, call.taps * width, call.pack * call.group_filters, tile, LOADED)
    moved = s.seen + s.w + s.y + s.saved + s.n + sums_window * s.squares
    yield Kernel(moved, s.flops * products.padding(call), True, issued)


def own_gradients(call: Call, direction: str, products: Products, given: bool) -> Iterator[Kernel]:
    """Our own products that form dx and dw; ``given`` says whether a kernel before them formed u and t."""
    s, packs = Sizes(call), call.groups // call.pack
    source, each = (s.z + s.t(call, direction), LOADED) if given else (s.grad, FORMED)
    width, height = call.pack * call.group_channels, call.pack * call.group_filters
    padded, walked = s.flops * products.padding(call), call.taps * height
    # Every input pixel walks every tap, also the taps through which no output reads it.
    tile = products.tiles(call, direction, given)[0]
    issued = _read(call.in_pixels * packs, walked, width, tile, each)
    moved = source + s.w + s.x + s.pooled(call, direction)
    yield Kernel(moved, padded * call.stride[0] * call.stride[1], True, issued)
    if direction == "training":
        tile = products.wgrad_tile(call, given)
        columns = call.taps * width if call.flat else call.taps * max(width, tile.n)
        yield Kernel(source + s.seen + s.w, padded, True, _read(call.pixels * packs, height, columns, tile, each))
