"""The CUDA kernels of the compiled extension, which the backends "cuda" of all ops start."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch

from ..core import _torch, env, extension
from ..core.device import architecture
from ..core.dispatch import other_dtype

__all__ = ["DTYPES", "absent", "device", "kernels", "unavailable"]

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The dtypes that the CUDA kernels of every op take."""


def _load():
    """The extension's submodule ``cuda``, or None; and the reason why it is missing."""
    built, absent = extension.load()
    found = getattr(built, "cuda", None)
    if built is not None and found is None:
        absent = "the compiled extension was built without CUDA, which needs a torch with CUDA and the CUDA toolkit"
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
        found = _unserved_architecture(call.arch)
    return found + other_dtype(call.dtype, DTYPES)


@_torch.constant_when_compiled
def _unserved_architecture(arch: str) -> list[str]:
    """A function of its own, because Dynamo looks through functools.cache and would trace what it wraps."""
    return _unserved_by(arch)


@cache
def _unserved_by(arch: str) -> list[str]:
    with _current(arch):
        reason = kernels.why_not()
    if not reason:
        return []
    compiled = ", ".join(f"sm_{each // 10}" for each in kernels.build_info()["architectures"])
    return [f"the CUDA kernels were compiled for {compiled} and cannot run on the GPU, {arch}: {reason}"]


def _current(arch: str):
    """A context in which a GPU of this architecture is the current one, of which the extension tells what it runs.

    Where the current one is of it, no other is touched: each that is takes memory for this process.
    """
    if device != "cuda" or architecture(torch.cuda.current_device()) == arch:
        return nullcontext()
    others = [i for i in range(torch.cuda.device_count()) if architecture(i) == arch]
    return torch.cuda.device(others[0]) if others else nullcontext()
