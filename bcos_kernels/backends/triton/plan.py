"""Which kernels serve a call, and in which tiles: pure functions of the problem.

Every direction of a call can be served in up to three ways (candidates):

- ``one-pass``: norm, scale and their derivatives inside the products;
- ``semi`` (backward): one kernel forms u = ∂L/∂z and t, own products take them;
- ``vendor``: the vendor's products, and fused helpers beside them.

Which one runs is what :func:`bcos_kernels.tune` measured on this device, or else what the byte model predicts: each
kernel takes the longest of its traffic over the memory's rate, its products over the arithmetic's rate and its
instructions over the rate at which they are issued.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import choices
from .problem import HALF, Problem, power_of_two

__all__ = ["CANDIDATES", "DIRECTIONS", "Choice", "Tile", "candidates", "choose", "plain_time", "predict", "tiles"]

DIRECTIONS = ("forward", "explanation", "training")
CANDIDATES = ("one-pass", "semi", "vendor")
MAX_SLOTS = 16  # filters of a maximum that still fit a tile

MOST_FUSED = {"sm_80": 64 * 128, "gfx942": 64 * 64}  # values of a tile beside which u and t fit the registers
LAUNCH = 2.5e-6  # seconds between the ends of two dependent small kernels
OWN_SHARE = {"sm_80": 0.85, "sm_90": 0.6, "sm_100": 0.4, "gfx942": 0.5}
"""Assumed: the rate of these kernels' products, as a share of the vendor's. Measuring replaces it."""
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


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a product's step, and how it is started."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Choice:
    """How one direction of a call is served, and why so."""

    candidate: str
    tile: Tile | None
    """Of the product that forms y or dx; None in a depthwise layer and with the vendor's."""
    reason: str


def candidates(p: Problem, direction: str) -> tuple[str, ...]:
    """The candidates that can serve one direction."""
    if p.max_out > MAX_SLOTS:
        return ("vendor",)
    if direction == "forward" or p.depthwise:
        return "one-pass", "vendor"
    # a maximum, or the power and its slope, beside a product's tile would not fit the registers
    fused = p.pack == 1 and p.max_out == 1 and (p.power == 1 or (p.power == 2 and p.saves_norm))
    return ("one-pass", "semi", "vendor") if fused else ("semi", "vendor")


def choose(p: Problem, direction: str) -> Choice:
    """What serves one direction: the stored choice, or the candidate of the shortest predicted time."""
    stored = choices.find(p, direction)
    if stored is not None and stored["candidate"] in candidates(p, direction):
        offered = tiles(p, direction, stored["candidate"]) if has_tile(p, stored["candidate"]) else [None]
        tile = Tile(*stored["tile"]) if stored["tile"] else None
        if tile in offered:
            return Choice(stored["candidate"], tile, "measured on this device")
    times = {name: predict(p, direction, name) for name in candidates(p, direction)}
    best = min(times, key=times.get)
    listed = ", ".join(f"{name} {1e6 * time:.0f} µs" for name, time in times.items())
    tile = tiles(p, direction, best)[0] if has_tile(p, best) else None
    return Choice(best, tile, f"predicted: {listed}")


def has_tile(p: Problem, candidate: str) -> bool:
    """Whether the candidate has a product of ours whose tile can be chosen."""
    return candidate != "vendor" and (candidate == "semi" or not p.depthwise)


def tiles(p: Problem, direction: str, candidate: str) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first."""
    if direction == "forward":
        columns = p.pack * p.group_outputs * slots(p)
        depth = p.taps * p.group_channels if p.flat else p.pack * p.group_channels
        return _tiles(p, p.pixels, columns, depth, slots(p), p.flat)
    fused = candidate == "one-pass"
    found = _tiles(p, p.in_pixels, p.pack * p.group_channels, p.pack * p.group_filters, busy=fused)
    most = MOST_FUSED.get(p.arch, 128 * 128)
    return [tile for tile in found if not fused or tile.m * tile.n <= most]


def wgrad_tile(p: Problem) -> Tile:
    """Filters × channels of a tap (of all taps in a flat walk), in steps of pixels."""
    columns = p.taps * p.group_channels if p.flat else p.pack * p.group_channels
    return _tiles(p, p.pack * p.group_filters, columns, p.pixels, busy=True)[0]


def slots(p: Problem) -> int:
    """Columns that the filters of one output take: a power of two."""
    return power_of_two(p.max_out)


def _tiles(p: Problem, rows: int, columns: int, depth: int, least_columns: int = 16, busy: bool = False) -> list[Tile]:
    half = p.dtype in HALF
    stages = 2 if p.arch.startswith("gfx") or not half else 3
    shapes = [(128, 128), (128, 64), (64, 128), (64, 64), (64, 32)] if half else [(64, 64), (64, 32), (32, 32)]
    k = min(64 if half else 32, power_of_two(depth, 16))
    found = {}
    for m, n in shapes:
        m, n = min(m, power_of_two(rows, 16)), max(min(n, power_of_two(columns, 16)), least_columns)
        more = m * n >= 128 * 128 or ((busy or not half) and max(m, n) > (64 if half else 32))
        found[Tile(m, n, k, 8 if more else 4, stages)] = None
    return list(found)


def splits(rows: int, programs: int, step: int) -> int:
    """Shares of the rows that wgrad sums on their own, so that its programs fill the device."""
    return max(1, min(-(-528 // programs), -(-rows // (4 * step)), 64))


def strip(width: int) -> int:
    """Neighbouring pixels that a depthwise program's row holds: the fewest left over, then the most."""
    return min(range(8, 3, -1), key=lambda v: (-(-width // v) * v, -v)) if width > 4 else width


def predict(p: Problem, direction: str, candidate: str) -> float:
    """Seconds by the byte model; a prediction, not a measurement."""
    return sum(LAUNCH + _time(p, *kernel) for kernel in _kernels(p, direction, candidate))


def plain_time(p: Problem, direction: str) -> float:
    """Seconds of the plain layer by the same model: the floor that every candidate is held against."""
    s = _Sizes(p)
    forward, dgrad = (s.x + s.w + s.z, s.flops, False), (s.z + s.w + s.x, s.flops, False)
    kernels = {"forward": [forward], "explanation": [dgrad], "training": [dgrad, dgrad]}[direction]
    return sum(LAUNCH + _time(p, *kernel) for kernel in kernels)


def _time(p: Problem, moved: float, flops: float, own: bool, issued: float = 0) -> float:
    arch = p.arch if p.arch in RATES else "sm_90"
    memory, half, tf32, fp32, instructions = RATES[arch]
    if p.depthwise:
        rate = fp32 * DEPTHWISE_SHARE[own]
    else:
        rate = (half if p.dtype in HALF else tf32 if p.tf32 else fp32) * (OWN_SHARE[arch] if own else 1)
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
        self.padded = self.flops * (p.pack if p.groups > 1 else slots(p) / p.max_out)
        self.vector = 1.5 * self.flops  # depthwise: the product, and the norm's or its gradient's column sums


def _read(rows: int, depth: int, columns: int, tile: Tile, instructions: int) -> float:
    """Instructions of a product's loop: its left operand is read for every tile of columns."""
    return float(instructions) * rows * depth * -(-columns // tile.n)


def _kernels(p: Problem, direction: str, candidate: str) -> Iterator[tuple]:
    """(bytes, FLOP, whether the product is ours, instructions) of every kernel that a candidate starts."""
    s = _Sizes(p)
    vendor, one_pass = candidate == "vendor", candidate == "one-pass"
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
            tile, width = tiles(p, direction, candidate)[0], p.pack * p.group_channels
            issued = _read(
                p.pixels * p.groups // p.pack, p.taps * width, p.pack * p.group_filters, tile, LOADED_INSTRUCTIONS
            )
            yield s.x + s.w + s.y + s.saved + s.n + norm_in_window * s.q, s.padded, True, issued
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
        tile, walked = tiles(p, direction, candidate)[0], p.taps * height
        # every tap is walked from every input pixel, also those that no output reads
        issued = _read(p.in_pixels * packs, walked, width, tile, each)
        yield source + s.w + s.x + pooled, s.padded * p.stride[0] * p.stride[1], True, issued
        if training:
            tile = wgrad_tile(p)
            columns = p.taps * max(width, tile.n) if not p.flat else p.taps * width
            issued = _read(p.pixels * packs, height, columns, tile, each)
            yield source + s.x + s.w, s.padded, True, issued
    if training:
        yield 2 * s.w, 0, True
