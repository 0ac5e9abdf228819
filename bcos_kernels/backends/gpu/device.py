"""The GPU that serves a call, or what stands in for one."""

from __future__ import annotations

import os
from functools import cache

import torch

__all__ = ["INTERPRETED", "architecture"]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
"""Whether Triton's interpreter runs its kernels on CPU tensors."""


@cache
def architecture(index: int | None = None) -> str:
    """``sm_<capability>`` or ``gfx<name>`` of a GPU; "none" without one."""
    if not torch.cuda.is_available():
        return "none"
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
