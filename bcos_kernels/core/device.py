"""The facts about the GPU and the settings of torch that decide how a call is served."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from . import _torch, env

__all__ = ["ASYNCHRONOUS", "architecture", "architecture_of", "fields_of", "multiprocessors", "shared_memory", "tf32"]

ASYNCHRONOUS = ("sm_90", "sm_100", "sm_103")
"""The architectures whose products take operands from shared memory and leave registers for more values."""

_SHARED = {"sm_80": 163 << 10, "sm_87": 163 << 10, **dict.fromkeys(ASYNCHRONOUS, 227 << 10)}
_LEAST_SHARED = 99 << 10


@cache
def architecture(index: int | None = None) -> str:
    """The architecture of a GPU, ``"sm_<capability>"`` or ``"gfx<name>"``; ``"none"`` where there is no GPU."""
    if not torch.cuda.is_available():
        return "none"
    if torch.version.hip:
        return torch.cuda.get_device_properties(index).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@_torch.constant_when_compiled
def architecture_of(where: torch.device) -> str:
    """The architecture of a tensor's device; ``"none"`` where it is not a GPU."""
    return architecture(where.index) if where.type == "cuda" else "none"


def fields_of(where: torch.device) -> dict[str, Any]:
    """The fields ``device``, ``arch`` and ``index`` of a call whose tensors lie on this device."""
    return {"device": where.type, "arch": architecture_of(where), "index": where.index}


def shared_memory(arch: str) -> int:
    """The bytes of shared memory that a program may take on an NVIDIA GPU from sm_80 on.

    An architecture that is not listed counts as that of a workstation's GPU (sm_86, sm_89, sm_120), which has least.
    """
    return _SHARED.get(arch, _LEAST_SHARED)


@cache
def multiprocessors(where: torch.device) -> int:
    """The multiprocessors of a GPU. The meta device stands for an H200, and a CPU, in Triton's interpreter, has two."""
    if where.type == "cuda":
        return torch.cuda.get_device_properties(where).multi_processor_count
    return 132 if where.type == "meta" else 2


def tf32(dtype: torch.dtype, device: str, is_linear: bool) -> bool:
    """Whether torch's settings let products of this dtype round their operands to tf32.

    On a CPU they do not, unless Triton's interpreter runs the kernels there in place of a GPU. Without cuDNN torch's
    convolutions are products of matrices.
    """
    if dtype is not torch.float32 or (device == "cpu" and not env.INTERPRETED) or env.NO_TF32:
        return False
    backends = torch.backends
    of_matrices = is_linear or not backends.cudnn.enabled
    chain = (backends.cuda.matmul,) if of_matrices else (backends.cudnn.conv, backends.cudnn)  # type: ignore[attr-defined]
    settings = (place.fp32_precision for place in (*chain, backends))
    return next((setting for setting in settings if setting != "none"), "ieee") == "tf32"
