"""The Triton kernels for GPU tensors: fp32, fp16 and bf16, in NHWC.

``why_not`` answers without importing Triton. With ``TRITON_INTERPRET=1`` in the environment, Triton's interpreter runs
the same kernels slowly on CPU tensors, which checks them without a GPU.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

from ...core import device, env
from ...core.candidate import Backend
from ..call import Call
from ..traffic import Products
from ..unserved import unserved
from . import tiles

__all__ = ["BACKEND", "INSTALLED", "PRODUCTS", "kernels", "serves_products", "why_not"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_ROWS = 2**31 - 1  # the largest 32-bit index

INSTALLED = find_spec("triton") is not None


def why_not(call: Call) -> list[str]:
    """The reasons why the Triton kernels do not serve ``call``; empty where they do."""
    found = []
    if not INSTALLED:
        found.append("the package triton is not installed")
    if call.device == "cuda":
        found += _unserved_architecture()
    elif call.device != "cpu" or not env.INTERPRETED:
        hint = ", or on 'cpu' in the interpreter (TRITON_INTERPRET=1)" if call.device == "cpu" else ""
        found.append(f"device is {call.device!r}, the Triton kernels run on 'cuda'{hint}")
    return found + unserved(call, _DTYPES, _MOST_ROWS)


def _unserved_architecture() -> list[str]:
    arch = device.architecture()
    if arch.startswith("sm_") and int(arch[3:]) < 80:
        return [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"]
    return []


def serves_products(call: Call) -> bool:
    """Whether our own products can serve the call."""
    return call.max_out <= tiles.MOST_MAX_OUT


@cache
def kernels() -> ModuleType:
    """The module that starts the kernels. The first call imports it, because machines without a GPU need no Triton."""
    from . import layer

    return layer


PRODUCTS = Products(tiles.SHARE, tiles.padding, tiles.tiles, tiles.wgrad_tile)
BACKEND = Backend("triton", why_not, interchangeable=True)
