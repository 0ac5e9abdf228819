"""The byte model: how long each way to serve a call would take; a prediction, not a measurement.

Each kernel takes the longest of its traffic over the memory's rate, its products over the arithmetic's rate and its
instructions over the rate at which they are issued.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from .problem import HALF, Problem
from .tile import Tile

__all__ = ["plain_time", "predict"]

LAUNCH = 2.5e-6  # seconds between the ends of two dependent small kernels
DEPTHWISE_SHARE = {True: 0.5, False: 0.2}
"""Assumed: the part of the fp32 rate that a depthwise layer reaches, ours and the vendor's."""

FUSED_INSTRUCTIONS, LOADED_INSTRUCTIONS = 25, 3
"""A thread's, for each value of u that a product forms in its loop and for each value that it only loads: of sm_90's
binaries (``python -m benchmarks.triton_aot``)."""

RATES = {
    "sm_80": (1.7e12, 260e12, 130e12, 17e12, 19e12),
    "sm_90": (4.3e12, 790e12, 390e12, 50e12, 30e12),
    "sm_100": (7.0e12, 1700e12, 850e12, 70e12, 36e12),
    "gfx942": (4.3e12, 900e12, 450e12, 80e12, 41e12),
}
"""Memory in bytes/s; products in half precision, in tf32 and in fp32, in FLOP/s; threads' instructions/s. Reachable."""


def predict(p: Problem, direction: str, plan: ModuleType, candidate: str) -> float:
    """Seconds of a candidate of the backend whose ``plan`` this is."""
    return sum(LAUNCH + _time(p, plan.OWN_SHARE, *kernel) for kernel in _kernels(p, direction, plan, candidate))


def plain_time(p: Problem, direction: str) -> float:
    """Seconds of the plain layer by the same model: the floor that every candidate is held against."""
    s = _Sizes(p)
    forward, dgrad = (s.x + s.w + s.z, s.flops, False), (s.z + s.w + s.x, s.flops, False)
    kernels = {"forward": [forward], "explanation": [dgrad], "training": [dgrad, dgrad]}[direction]
    return sum(LAUNCH + _time(p, {}, *kernel) for kernel in kernels)


def _time(p: Problem, own_share: dict[str, float], moved: float, flops: float, own: bool, issued: float = 0) -> float:
    arch = p.arch if p.arch in RATES else "sm_90"
    memory, half, tf32, fp32, instructions = RATES[arch]
    if p.depthwise:
        rate = fp32 * DEPTHWISE_SHARE[own]
    else:
        rate = (half if p.dtype in HALF else tf32 if p.tf32 else fp32) * (own_share[arch] if own else 1)
    return max(moved / memory, flops / rate, issued / instructions)


class _Sizes:
    """Bytes of the tensors of a problem, and the FLOP of its product."""

    def __init__(self, p: Problem) -> None:
        element, out = p.dtype.itemsize, p.out_dtype.itemsize
        self.x = p.in_pixels * p.x_shape[1] * element
        self.w = p.filters * p.group_channels * p.taps * element
        self.z = p.pixels * p.filters * element
        self.y = p.pixels * p.outputs * out
        self.n = 0 if p.power == 1 else p.pixels * p.groups * 4
        self.q = 0 if p.power == 1 else p.in_pixels * p.groups * 4
        self.saved = self.y * (p.power == 0) + p.pixels * p.outputs * (p.max_out > 1)
        self.flops = 2.0 * p.pixels * p.filters * p.group_channels * p.taps
        self.vector = 1.5 * self.flops  # depthwise: the product, and the norm's or its gradient's column sums


def _read(rows: int, depth: int, columns: int, tile: Tile, instructions: int) -> float:
    """Instructions of a product's loop: its left operand is read for every tile of columns."""
    return float(instructions) * rows * depth * -(-columns // tile.n)


def _kernels(p: Problem, direction: str, plan: ModuleType, candidate: str) -> Iterator[tuple]:
    """(bytes, FLOP, whether the product is ours, instructions) of every kernel that a candidate starts."""
    s = _Sizes(p)
    vendor, one_pass = candidate == "vendor", candidate == "one-pass"
    padded = s.flops * plan.padding(p)
    norm_in_window = p.power != 1 and p.taps > 1 and not p.flat
    if p.unit:
        yield s.w if p.raw_weights else 2 * s.w, 0, True
    if direction == "forward":
        if p.depthwise and one_pass:
            yield s.x + s.w + s.y + s.saved, s.vector, True
            return
        if norm_in_window or (vendor and p.power != 1):
            yield s.x + s.q, 0, True
        if not vendor:
            tile, width = plan.tiles(p, direction, candidate)[0], p.pack * p.group_channels
            issued = _read(
                p.pixels * p.groups // p.pack, p.taps * width, p.pack * p.group_filters, tile, LOADED_INSTRUCTIONS
            )
            yield s.x + s.w + s.y + s.saved + s.n + norm_in_window * s.q, padded, True, issued
            return
        yield s.x + s.w + s.z, s.flops, False
        if norm_in_window:
            yield s.q + s.n, 0, True
        if p.unit or p.power != 1 or p.max_out > 1:
            yield s.z + s.n + s.y + s.saved, 0, True
        return
    training = direction == "training"
    upstream = s.y * (1 if p.power == 1 else 2) + s.n + p.pixels * p.outputs * (p.max_out > 1)
    t = training * (s.q if p.depthwise else s.n)
    pooled = training * (p.power != 1) * s.x
    if p.depthwise and one_pass:
        yield s.x + upstream + s.z + t, s.vector, True
        yield s.z + t + pooled + s.w + s.x, s.vector, True
        if training:
            yield s.z + s.x + s.w, s.flops, True
            yield 2 * s.w, 0, True
        return
    if not one_pass:
        yield upstream + s.z + t, 0, True
    if vendor:
        yield s.z + s.w + s.x, s.flops, False
        if pooled:
            yield t + 3 * s.x, 0, True
        if training:
            yield s.z + s.x + s.w, s.flops, False
    else:
        source, each = (upstream, FUSED_INSTRUCTIONS) if one_pass else (s.z + t, LOADED_INSTRUCTIONS)
        packs, width, height = p.groups // p.pack, p.pack * p.group_channels, p.pack * p.group_filters
        tile, walked = plan.tiles(p, direction, candidate)[0], p.taps * height
        # every tap is walked from every input pixel, also those that no output reads
        issued = _read(p.in_pixels * packs, walked, width, tile, each)
        yield source + s.w + s.x + pooled, padded * p.stride[0] * p.stride[1], True, issued
        if training:
            tile = plan.wgrad_tile(p)
            columns = p.taps * max(width, tile.n) if not p.flat else p.taps * width
            issued = _read(p.pixels * packs, height, columns, tile, each)
            yield source + s.x + s.w, padded, True, issued
    if training:
        yield 2 * s.w, 0, True
