"""The bytes that the GPU kernels move and the FLOP that they compute, from which costs are predicted.

In FLOP a product with the weight of all pixels is as much as the dynamic weights themselves are, and as much as those
products are of which the factored form is made: the patches with the weight, before h is known. So the floor has one of
them forward and in an explanation, and three in training, beside the Gram matrices with which it forms norms and dw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

import torch

from ..gpu.cost import Kernel, rates, share
from .call import Call

__all__ = ["CUDA_SHARE", "SHARE", "cost", "cuda_cost", "cuda_kernels", "floor", "kernels"]

SHARE = {"sm_80": 0.85, "sm_90": 0.6, "sm_100": 0.4, "gfx942": 0.5}
CUDA_SHARE = {"sm_80": 0.7, "sm_90": 0.35, "sm_100": 0.25}
"""Architecture -> the rate of the products of the Triton, or the CUDA kernels as a share of the vendor's; assumed."""
FORWARD, FORMED, LOADED, GATHERED = 3, 4, 3, 25
"""The instructions of a thread for each dynamic weight, each operand that a loop forms, each that it only loads, and
each value of a patch that it looks up in x."""
CUDA_SIDE = 64
"""The side of the tiles of the CUDA kernels."""


class _Sizes:
    """The bytes of the tensors of a call, and the FLOP of its products."""

    def __init__(self, call: Call) -> None:
        element, pixels, outputs = call.dtype.itemsize, call.pixels, call.outputs
        images, channels, height, width = call.x_shape
        self.x = images * channels * height * width * element
        self.h, self.y = pixels * call.rank * element, pixels * outputs * element
        self.w = call.patch * outputs * (call.rank + call.bias) * element
        self.wide_w = 4.0 * call.patch * outputs * (call.rank + call.bias)
        self.gram_w = 4.0 * outputs * call.rank**2
        self.of_output = 4.0 * pixels * outputs
        """fp32 values of every pixel and output, as norm and l are."""
        self.u = pixels * call.patch * element
        self.du = 4.0 * pixels * call.patch
        self.weights = float(pixels) * call.patch * outputs
        """The number of dynamic weights."""
        self.flops = float(call.flops)
        self.gram = 2.0 * pixels * outputs * call.rank**2
        """The FLOP of Gram matrices with h, or of those of h."""
        self.of_weight = 2.0 * call.patch * outputs * call.rank**2
        """The FLOP of Gram matrices of the weight, or of the weight with those of h."""


def kernels(call: Call, direction: str) -> Iterator[Kernel]:
    """The Triton kernels of one direction, in the order in which they are started."""
    s = _Sizes(call)
    if direction == "forward":
        saved = s.of_output * (1 if call.spec.detach else 2)
        yield Kernel(s.x + s.h + s.w + s.y + saved, s.flops, True, FORWARD * s.weights)
        return
    training = direction == "training"
    if training:
        yield Kernel(s.y + 4 * s.of_output)
    yield Kernel(s.y * (not training) + s.of_output + s.h + s.w + s.du, s.flops, True, s.weights)
    yield Kernel(s.du + s.x)  # the fold
    if not training:
        return
    wide = 1 + (call.dtype == torch.float16)  # products with operands that fp16 may not hold are formed in tf32
    loaded = LOADED * s.flops / 2 / min(64, call.rank)  # an operand is loaded once for so many columns
    formed = FORMED * s.flops / 2 / 64
    yield Kernel(s.x + s.u)
    if call.spec.norm == "l1":
        columns = ceil(call.rank / 64)  # w is formed for each 64 values of h
        for _ in range(2):  # dh and dweight
            moved = 2 * s.of_output + s.u + s.w + 2 * s.h
            yield Kernel(moved, (wide + columns) * s.flops, True, (FORMED + LOADED) * columns * s.weights)
        return
    yield Kernel(s.w + s.wide_w)
    yield Kernel(s.wide_w + s.gram_w, s.of_weight, own=False)
    yield Kernel(2 * s.of_output + s.u + s.w + s.gram_w + 3 * s.h, s.flops + wide * s.gram, True, loaded)
    yield Kernel(s.of_output + s.u + s.h + s.wide_w, wide * s.flops, True, loaded + formed)
    yield Kernel(s.of_output + 2 * s.h + s.gram_w, wide * s.gram, True)
    yield Kernel(3 * s.wide_w + s.gram_w, s.of_weight, own=False)
    yield Kernel(s.wide_w + s.w)
    if call.bias:
        yield Kernel(s.of_output + s.h)
        yield Kernel(s.of_output + s.u)
        yield Kernel(s.wide_w)


def cuda_kernels(call: Call, direction: str) -> Iterator[Kernel]:
    """The CUDA kernels of one direction, in the order in which they are started."""
    s = _Sizes(call)
    if direction == "forward":
        side_by_side = max(1, CUDA_SIDE // call.outputs)  # values of the patch in a tile
        tiles = ceil(call.outputs / CUDA_SIDE)
        padded = tiles * CUDA_SIDE / (call.outputs * side_by_side)  # the columns of all tiles for each that is used
        saved, gathered = s.of_output * (1 if call.spec.detach else 2), GATHERED * tiles * s.u / call.dtype.itemsize
        shared = side_by_side > 1  # a value of the patch is then read for each dynamic weight
        instructions = (FORWARD + shared) * s.weights * padded + gathered
        yield Kernel(s.x + s.h + s.w + s.y + saved, s.flops * padded, True, instructions)
        return
    training = direction == "training"
    yield Kernel(s.y + (4 if training else 2) * s.of_output)
    yield Kernel(s.of_output + s.h + s.w + s.du, s.flops, True, s.weights)
    yield Kernel(s.du + s.x)  # the fold
    if not training:
        return
    wide = 1 + (call.dtype.itemsize == 2)  # in half precision their products are of tf32
    dw, wide_h = 4 * s.weights, 4.0 * call.pixels * call.rank
    yield Kernel(2 * s.of_output + s.x + wide_h + s.wide_w + dw, wide * s.flops, True, GATHERED * s.weights)
    for _ in range(2):  # dh and dweight
        yield Kernel(dw + wide_h + s.wide_w, wide * s.flops, True)


def _seconds(call: Call, found: Iterable[Kernel], own: float) -> float:
    reached = rates(call.arch)
    rate = reached.products(call.dtype, call.tf32)
    return sum(reached.seconds(kernel, rate * own if kernel.own else rate) for kernel in found)


def cost(call: Call, direction: str) -> float:
    """The predicted seconds of the Triton kernels."""
    return _seconds(call, kernels(call, direction), share(SHARE, call.arch))


def cuda_cost(call: Call, direction: str) -> float:
    """The predicted seconds of the CUDA kernels."""
    return _seconds(call, cuda_kernels(call, direction), share(CUDA_SHARE, call.arch))


def floor(call: Call, direction: str) -> float:
    """The seconds of the factored form at the vendor's rate, if each tensor were moved once and by one kernel."""
    s = _Sizes(call)
    if direction == "forward":
        moved, flops = s.x + s.h + s.w + s.y + s.of_output * (1 if call.spec.detach else 2), s.flops + s.gram / 2
    elif direction == "explanation":
        moved, flops = s.y + s.of_output + s.h + s.w + s.x, s.flops
    else:
        moved, flops = s.y + 2 * s.of_output + 2 * (s.x + s.h + s.w), 3 * s.flops + s.gram
    return _seconds(call, [Kernel(moved, flops, own=False)], 1.0)
