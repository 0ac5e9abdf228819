"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16, in NHWC.

Whether they serve a call is known without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's
interpreter runs the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

import torch

from ...core.candidate import Backend
from ...gpu.triton import deferred, unavailable
from ..call import Call
from ..traffic import Products
from . import tiles

__all__ = ["BACKEND", "PRODUCTS", "backward", "forward", "second", "serves_products"]

_MOST_ROWS = 2**31 - 2**17  # leaves the last step of a loop over rows an index of 32 bits
_MOST_PROGRAMS = 65535  # of a grid's second axis


def serves_products(call: Call) -> bool:
    """Whether our own products can serve the call."""
    if not call.planar or call.dtype == torch.float64 or call.max_out > tiles.MOST_MAX_OUT:
        return False
    if call.depthwise and not call.tensor_b:  # the gradient of a tensor b is left to the products of wider groups
        return True
    (rows, columns), (_, width) = (
        (d * (k - 1) for d, k in zip(call.dilation, call.kernel, strict=True)), call.in_size
    )  # fmt: skip
    reach = (rows * width + columns + 1) * call.channels  # values from the first of a window to behind its last
    return reach < 2**31 and call.groups // call.pack * call.taps <= _MOST_PROGRAMS


forward, backward, second = (deferred(f"{__name__}.layer", name) for name in ("forward", "backward", "second"))

PRODUCTS = Products(tiles.SHARE, tiles.padding, tiles.tiles, tiles.wgrad_tile)
BACKEND = Backend("triton", lambda call: unavailable(call) + call.unserved(_MOST_ROWS), interchangeable=True)
