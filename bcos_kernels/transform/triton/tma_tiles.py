"""Which calls the kernels with TMA serve, and their tiles; every function depends on its arguments alone."""

from __future__ import annotations

from dataclasses import replace
from math import gcd

from ...core.candidate import Tile
from ...gpu.cost import rates, share
from ...gpu.sizes import power_of_two
from ..call import HALF, Call
from ..traffic import Sizes

__all__ = [
    "ALIGNED", "SHARE", "beside_map", "forms_l", "in_registers", "residents", "tiles", "training_tile", "why_not",
]  # fmt: skip

ALIGNED = 16  # bytes of which TMA takes addresses and the lengths of rows as multiples
BLACKWELL = ("sm_100", "sm_103")
ARCHITECTURES = ("sm_90", *BLACKWELL)
"""Those with TMA and 227 KiB of shared memory."""
SHARE = {"sm_90": 0.75, "sm_100": 0.6}
"""Architecture -> the rate of these kernels' products as a share of the vendor's; assumed, until ``tune`` measures."""
_MOST_ROWS = 2**31 - 2**17  # leaves the last step of a program an index of 32 bits
_SHARED = 227 << 10
_REGISTER_FILE, _REGISTERS = 65536, 255


def why_not(call: Call, direction: str) -> list[str]:
    """The reasons why the kernels with TMA do not serve one direction of a call; empty where they do."""
    found = []
    if call.device != "cpu" and call.arch not in ARCHITECTURES:
        found.append(f"the GPU's architecture is {call.arch}, allowed: {', '.join(ARCHITECTURES)}")
    if call.dtype not in HALF:
        found.append(f"dtype is {call.dtype}, allowed: {', '.join(map(str, HALF))}")
    if call.taps != 1 or len(call.in_size) != 2 or any(call.padding) or call.spec.border:
        window = f"kernel {call.kernel}, padding {call.padding}"
        found.append(f"the convolution has {window}, allowed: 1×1, no padding")
    elif any(size % step for size, step in zip(call.in_size, call.stride, strict=True)):
        found.append(f"stride {call.stride}, allowed: one that divides the height and the width of x, {call.in_size}")
    if call.groups != 1 or call.max_out != 1:
        found.append(f"groups={call.groups} and max_out={call.max_out}, allowed: 1")
    for what, count, size in (
        ("channels", call.channels, call.dtype.itemsize),
        ("filters", call.filters, min(call.dtype.itemsize, call.out_dtype.itemsize)),
    ):
        if count * size % ALIGNED:
            found.append(f"{count} {what} of {size} bytes, allowed: multiples of {ALIGNED} bytes")
    if call.pixels > _MOST_ROWS:
        found.append(f"{call.pixels} pixels, allowed: at most {_MOST_ROWS}")
    if not found and direction == "training":
        found += _no_training(call)
    return found


def _no_training(call: Call) -> list[str]:
    if call.stride != (1, 1):
        return [f"stride {call.stride}, allowed: 1"]
    if call.power == 0:
        return ["b is neither 1 nor 2, for which the gradient of the norm needs more registers than there are"]
    if call.filters > (most := _most_filters(call)):
        return [f"{call.filters} filters, allowed: at most {most}, whose gradients fit the registers"]
    return []


def tiles(call: Call, direction: str) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first."""
    if direction == "training":
        return [training_tile(call)]
    return tiles_of_product(call, direction)


def tiles_of_product(call: Call, direction: str) -> list[Tile]:
    """The same; the training backward is that whose kernel forms dx and u."""
    forward, with_u = direction == "forward", direction == "training"
    columns, depth = (call.filters, call.channels) if forward else (call.channels, call.filters)
    k = min(64, power_of_two(depth, 16))
    # A wide tile forms u for fewer tiles of columns. The norm beside the widest spills where A is not in registers.
    wide = [(128, 128, 8), (128, 256, 8)] if forward else [(128, 256, 8), (128, 128, 8)]
    found: dict[Tile, None] = {}
    for m, n, warps in [*wide, (128, 64, 4), (64, 128, 4), (64, 64, 4)]:
        if n > power_of_two(columns, 64) or m > power_of_two(call.pixels, 64):
            continue
        if forward and n == 256 and not in_registers(call):
            continue
        if with_u and ((m, n) == (128, 64) or (n == 256 and (call.arch in BLACKWELL or call.out_dtype.itemsize > 2))):
            continue  # they would spill
        stages = (4, 3, 2) if warps == 4 else (3, 2)
        depth = min(k, _depth_beside_u(call, n)) if with_u else k
        room = _SHARED // residents(warps)
        fitting = (s for s in stages if _bytes(call, direction, Tile(m, n, depth, warps, s)) <= room)
        if stage := next(fitting, None):
            found[Tile(m, n, depth, warps, stage)] = None
    return list(found)


def _depth_beside_u(call: Call, columns: int) -> int:
    """The most filters of a step that leave a program registers where it forms dx and u."""
    if columns < 256:
        return 64 if call.out_dtype.itemsize == 2 else 32
    return 16 if forms_l(call, "training", Tile(128, columns, 16), True) else 32


def beside_map(call: Call, tile: Tile) -> Tile:
    """The tile with which the kernel of dx and u has registers for a gradient that still has to pass a map."""
    spills = tile.n >= 128 and forms_l(call, "training", tile, True)
    return replace(tile, k=min(tile.k, 32)) if spills else tile


def _bytes(call: Call, direction: str, tile: Tile) -> int:
    """Bytes of shared memory: what is copied, in a buffer less where it is read to registers, and stored."""
    m, n, k, stages, out = tile.m, tile.n, tile.k, tile.stages, call.out_dtype.itemsize
    element = call.dtype.itemsize
    if direction == "forward":
        left = m * k * element * (stages - in_registers(call))
        stored = m * n * out * (1 + call.saves_linear)
    else:
        left = m * k * out * (stages - 1) * (1 if call.power == 1 else 2)
        stored = m * n * element
        if direction == "explanation" and call.power == 0:
            stored += m * k * element  # u, which is no operand in registers where it is formed of a power
        if direction == "training":
            stored += (m * n + 2 * m * k) * element  # x, and u as an operand and as a result
    return left + n * k * element * stages + stored + 1024


def in_registers(call: Call) -> bool:
    """Whether the forward moves the tiles of x to registers, so that the norm and the product may both read them."""
    return call.power != 1 and call.arch not in BLACKWELL


def width(call: Call, tile: Tile) -> int:
    """The pixels of a tile that lie side by side where there is a stride; else 0, as one follows the other."""
    return 0 if call.stride == (1, 1) else gcd(call.out_size[1], tile.m)


def forms_l(call: Call, direction: str, tile: Tile, with_u: bool = False) -> bool:
    """Whether a backward forms l again from x in place of reading l or y: a tile has all channels, and it is faster.

    ``with_u`` says whether the kernel forms dx and u in place of all gradients.
    """
    both = direction == "training" and not with_u
    if call.power == 1 or call.channels > tile.n or (both and not _holds_l(call)):
        return False
    strided = call.stride != (1, 1)
    if (direction == "explanation" and strided) or (with_u and tile.n == 256 and not strided):
        return False  # there are too few registers
    s, reached = Sizes(call), rates(call.arch)
    rate = reached.half * share(SHARE, call.arch)

    def seconds(moved: int, products: int) -> float:
        return max(moved / reached.bytes, products * s.flops / rate)

    products, written = 2 if both else 1, s.x + with_u * s.z
    again = s.grad - s.y + s.seen + written
    reads_x = direction == "training"  # in any case
    return seconds(again, products + 1) < seconds(s.grad + reads_x * s.seen + written, products)


def _holds_l(call: Call) -> bool:
    """Whether the kernel of both gradients has registers for l, beside dw and the sums of the bias's gradient."""
    most = 64 if call.arch in BLACKWELL else 128 if call.bias else 256
    return call.channels <= 64 and call.filters <= most


def _most_filters(call: Call) -> int:
    """The most filters whose rows of dw, 64 channels wide, leave the kernel of both gradients registers for u."""
    return 128 if call.arch in BLACKWELL else 256


def training_tile(call: Call, mapped: bool = False) -> Tile:
    """The tile of the kernel that forms both gradients: pixels × channels × filters of a block.

    ``mapped`` says whether it is for a gradient that still has to pass a map.
    """
    k = min(64 if call.filters <= 128 else 32, power_of_two(call.filters, 16))
    filters = -(-call.filters // k) * k
    n = 128 if filters <= 128 and call.channels > 64 else 64
    warps = 8 if filters * n > 64 * 64 else 4
    # The product that forms l again gives its rows to warps: of 64 rows, eight warps would form each twice.
    formed = forms_l(call, "training", Tile(64, n, k, warps, 3))
    m = 128 if formed and warps == 8 else 64
    element, out = call.dtype.itemsize, call.out_dtype.itemsize
    source = m * filters * out * (1 if call.power == 1 or formed else 2)
    kept = filters * n * element + m * (k + n) * element
    kept += 40 << 10 if call.arch in BLACKWELL else 1 << 10 if formed else 13 << 10
    copied = source + m * n * element + formed * 4 * (m + filters * (5 if mapped else 1))
    return Tile(m, n, k, warps, 3 if kept + 2 * copied <= _SHARED // residents(warps) else 2)


def residents(warps: int) -> int:
    """The programs that share a multiprocessor, as many as its registers hold."""
    return _REGISTER_FILE // (32 * warps * _REGISTERS)
