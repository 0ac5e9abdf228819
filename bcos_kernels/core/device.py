"""What of the GPU and of torch's settings decides how a call is served."""

from __future__ import annotations

from functools import cache

import torch

from . import _torch, env

__all__ = ["architecture", "architecture_of", "tf32"]


@cache
def architecture(index: int | None = None) -> str:
    """``sm_<capability>`` or ``gfx<name>`` of a GPU; "none" without one."""
    if not torch.cuda.is_available():
        return "none"
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@_torch.constant_when_compiled
def architecture_of(where: torch.device) -> str:
    """That of the device of a tensor; "none" of what is no GPU."""
    return architecture(where.index) if where.type == "cuda" else "none"


def tf32(dtype: torch.dtype, device: str, is_linear: bool) -> bool:
    """Whether torch's settings let products of the dtype round their operands to tf32, on a device or its stand-in."""
    if dtype is not torch.float32 or (device == "cpu" and not env.INTERPRETED):
        return False
    backends = torch.backends
    chain = (backends.cuda.matmul,) if is_linear else (backends.cudnn.conv, backends.cudnn)  # type: ignore[attr-defined]
    settings = (place.fp32_precision for place in (*chain, backends))
    return next((setting for setting in settings if setting != "none"), "ieee") == "tf32"
