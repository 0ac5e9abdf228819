"""The Triton kernels for GPU tensors: fp64, fp32, fp16 and bf16, in NHWC.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs
the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

from ...core.candidate import Backend
from ...gpu.triton import unavailable
from ..call import Call
from ..traffic import Products
from ..unserved import unserved
from . import tiles

__all__ = ["BACKEND", "PRODUCTS", "kernels", "serves_products", "why_not"]

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MOST_ROWS = 2**31 - 1  # the largest 32-bit index


def why_not(call: Call) -> list[str]:
    """The reasons why the Triton kernels do not serve ``call``; empty where they do."""
    return unavailable(call.device) + unserved(call, _DTYPES, _MOST_ROWS)


def serves_products(call: Call) -> bool:
    """Whether our own products can serve the call."""
    return call.planar and call.dtype != torch.float64 and call.max_out <= tiles.MOST_MAX_OUT


@cache
def kernels() -> ModuleType:
    """The module that starts the kernels. The first call imports it, because machines without a GPU need no Triton."""
    from . import layer

    return layer


PRODUCTS = Products(tiles.SHARE, tiles.padding, tiles.tiles, tiles.wgrad_tile)
BACKEND = Backend("triton", why_not, interchangeable=True)
