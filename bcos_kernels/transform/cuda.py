"""The CUDA kernels for GPU tensors (``csrc/transform/cuda``): fp64, fp32, fp16, bf16, in NHWC, for sm_80 and later."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.candidate import Backend, Tile
from ..core.device import shared_memory
from ..gpu import cuda
from .call import HALF, Call
from .spec import Inputs, Outputs
from .traffic import Products

__all__ = [
    "BACKEND", "LARGE", "MOST_CHANNELS", "MOST_GROUPS", "MOST_MAX_OUT", "MOST_TAPS", "PRODUCTS", "SMALL", "backward",
    "forms_both_norms", "forward", "graph_why_not", "second", "serves_products", "tiles",
]  # fmt: skip

SMALL, LARGE = Tile(64, 64, 32), Tile(128, 128, 32, 8)
MOST_MAX_OUT = 64  # the most filters per output, which lie in one tile
MOST_GROUPS = 65535  # the most groups × taps, the second axis of a grid
MOST_CHANNELS = 64 * 65535  # the most channels of a depthwise layer, of which a program of that axis has 64
MOST_TAPS = 600  # the most taps of a depthwise filter, which a block holds in shared memory
_TAP = 264  # bytes of one there
_STRIP = 48 << 10  # the most bytes of sums over the pixels that a row of n sees

_MOST_ROWS = 2**31 - 128  # leaves the last row of the largest tile an index of 32 bits


def forms_both_norms(call: Call) -> bool:
    """Whether one kernel forms 1/‖w‖ and n in front of a product that takes both."""
    if call.power == 1 or call.groups > 1 or not call.planar or (call.unit and call.weight_dtype != call.dtype):
        return False
    rows = (call.kernel[0] - 1) * call.dilation[0] + 1
    return call.taps == 1 or rows * call.in_size[1] * call.sums.itemsize <= _STRIP


def forward(candidate: str, inputs: Inputs, call: Call, tile: Tile | None) -> tuple[Tensor, ...]:
    """The outputs for x ``[N, C, H, W]`` or ``[M, K]``, by the extension's candidate of this name."""
    return cuda.kernels.transform_forward(*inputs, call.spec.native, candidate, tile == LARGE, call.tf32)


def backward(
    candidate: str,
    grad: Tensor,
    inputs: Inputs,
    saved: Outputs,
    call: Call,
    tile: Tile | None,
    frozen: bool,
    needs,
    joined=(None, None),
    gradient_map: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and b; one not needed is None. ``frozen`` makes the scale a constant.

    ``joined`` holds the gradients of n and l that :func:`second` returned. ``gradient_map`` is what ``grad`` still has
    to pass, for candidates that take it.
    """
    x, weight, _, tensor_b = inputs
    return cuda.kernels.transform_backward(
        grad, x, weight, tensor_b, *saved, *joined, gradient_map, call.spec.native, frozen, list(needs), candidate,
        tile == LARGE, call.tf32, call.divides_x,
    )  # fmt: skip


def second(
    candidate: str, v: Tensor, grad: Tensor, inputs: Inputs, saved: Outputs, call: Call, frozen: bool, wanted
) -> tuple[Tensor | None, ...]:
    """The gradients of ⟨v, dx⟩: those of grad, x, weight, n and l; ``wanted`` is for x and weight."""
    spec = call.spec
    return cuda.kernels.transform_second(
        v, grad, *inputs[:2], *saved, spec.native, frozen, spec.detach, list(wanted), candidate, False, call.tf32,
        call.divides_x,
    )  # fmt: skip


def graph_why_not(call: Call, direction: str, compiles: bool = False) -> str:
    """Why the extension serves a direction of the call by no graph of cuDNN, in cuDNN's words or ours; else empty.

    A plan that is neither in this process nor stored is a reason, unless ``compiles``, which takes a second or more.
    Without the extension nothing is known; it is then the backend that does not serve the call.
    """
    if cuda.kernels is None:
        return ""
    with cuda.on(call.index):
        return cuda.kernels.graph_why_not(
            call.x_shape, call.weight_shape, call.dtype, call.weight_dtype, call.bias and direction != "explanation",
            call.spec.native, getattr(cuda.kernels.Step, direction), call.tf32, compiles,
        )  # fmt: skip


def serves_products(call: Call) -> bool:
    """Whether our own products can serve the call."""
    if not call.planar or call.dtype == torch.float64:
        return False
    most_taps = min(MOST_TAPS, shared_memory(call.arch) // _TAP)
    if call.depthwise:
        fits = call.taps <= most_taps and call.channels <= MOST_CHANNELS
    else:
        fits = call.groups * call.taps <= MOST_GROUPS
    return fits and call.max_out <= MOST_MAX_OUT


def tiles(call: Call, direction: str, given: bool) -> list[Tile]:
    """The tiles of the product that forms y or dx, the best guess first.

    ``given``: whether a kernel before the product forms u.
    """
    if call.depthwise:
        return []
    wide = call.dtype in HALF and call.group_channels % 8 == 0
    if direction != "forward":
        wide = wide and given and call.group_filters % 8 == 0
    return [LARGE, SMALL] if wide and call.group_filters >= LARGE.n else [SMALL, LARGE] if wide else [SMALL]


def _wgrad_tile(call: Call, given: bool) -> Tile:
    """The tile of the product that forms dw: filters × channels of a tap, in steps of pixels."""
    return (tiles(call, "training", given=True) or [SMALL])[0]


PRODUCTS = Products(
    # Assumed, because mma.sync reaches a smaller share of a Hopper than Hopper's own instructions. ``tune`` measures.
    share={"sm_80": 0.7, "sm_90": 0.35, "sm_100": 0.25},
    padding=lambda call: float(call.pack),
    tiles=tiles,
    wgrad_tile=_wgrad_tile,
)

BACKEND = Backend("cuda", lambda call: cuda.unavailable(call) + call.unserved(_MOST_ROWS), interchangeable=True)
