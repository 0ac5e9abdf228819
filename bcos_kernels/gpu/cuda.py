"""The CUDA kernels of the compiled extension, which the backends "cuda" of all ops start."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch

from ..core import _torch, env, extension
from ..core.dispatch import other_dtype

__all__ = ["DTYPES", "absent", "device", "kernels", "on", "unavailable"]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that the CUDA kernels of every op take."""


def _load():
    """The extension's submodule ``cuda``, or None; and the reason why it is missing."""
    built, absent = extension.load()
    found = getattr(built, "cuda", None)
    if built is not None and found is None:
        absent = (
            "the compiled extension was built without CUDA, which needs Linux, a torch with CUDA, the CUDA toolkit, "
            "and, on a machine with GPUs, one of sm_80 or later"
        )
    return found, absent


kernels, absent = _load()
device = kernels and kernels.build_info()["device"]
if kernels is not None:
    kernels.set_plan_folder(str(env.PLANS))


def unavailable(call) -> list[str]:
    """The reasons why no CUDA kernel has the dtype of a call or runs on its device; empty where they do."""
    if kernels is None:
        found = [absent]
    elif call.device != device:
        found = [f"device is {call.device!r}, the CUDA kernels run on 'cuda'"]
    else:
        found = _unserved_architecture(call.arch, call.index)
    return found + other_dtype(call.dtype, DTYPES)


@_torch.constant_when_compiled
def _unserved_architecture(arch: str, index: int | None) -> list[str]:
    """A function of its own, because Dynamo looks through functools.cache and would trace what it wraps."""
    return _unserved_by(arch, index)


@cache
def _unserved_by(arch: str, index: int | None) -> list[str]:
    with on(index):
        reason = kernels.why_not()
    if not reason:
        return []
    compiled = ", ".join(f"sm_{each // 10}" for each in kernels.build_info()["architectures"])
    return [f"the CUDA kernels were compiled for {compiled} and cannot run on the GPU, {arch}: {reason}"]


def on(index: int | None):
    """A context in which the GPU with this index is the current one, whose answers the extension gives.

    To ask another one would make a context on it, which takes hundreds of megabytes there for this process.
    """
    return nullcontext() if index is None else torch.cuda.device(index)
