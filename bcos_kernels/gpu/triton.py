"""Whether Triton's kernels run on a device; it is answered without importing Triton."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ..core import env
from ..core.dispatch import other_dtype

__all__ = ["DTYPES", "INSTALLED", "deferred", "unavailable"]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that the Triton kernels of every op take."""

INSTALLED = find_spec("triton") is not None


def deferred(module: str, function: str) -> Callable[..., Any]:
    """A function of a module that its first call imports, because machines without a GPU need no Triton."""
    imported = cache(partial(import_module, module))
    return lambda *args, **options: getattr(imported(), function)(*args, **options)


def unavailable(call) -> list[str]:
    """The reasons why no Triton kernel has the dtype of a call or runs on its device; empty where they do."""
    found, where = [], call.device
    if not INSTALLED:
        found.append("the package triton is not installed")
    if where == "cuda":
        found += _unserved_architecture(call.arch)
    elif where != "cpu" or not env.INTERPRETED:
        hint = ", or on 'cpu' in the interpreter (TRITON_INTERPRET=1)" if where == "cpu" else ""
        found.append(f"device is {where!r}, the Triton kernels run on 'cuda'{hint}")
    return found + other_dtype(call.dtype, DTYPES)


def _unserved_architecture(arch: str) -> list[str]:
    if arch.startswith("sm_") and int(arch[3:]) < 80:
        return [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"]
    return []
