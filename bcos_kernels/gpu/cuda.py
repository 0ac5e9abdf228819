"""The CUDA kernels of the compiled extension, which the backends "cuda" of all ops start."""

from __future__ import annotations

from functools import cache

import torch

from ..core import _torch, env, extension

__all__ = ["absent", "device", "kernels", "unavailable"]


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


def unavailable(where: str) -> list[str]:
    """The reasons why no CUDA kernel runs on this type of device; empty where they do."""
    if kernels is None:
        return [absent]
    if where != device:
        return [f"device is {where!r}, the CUDA kernels run on 'cuda'"]
    return _unserved_architecture()


@_torch.constant_when_compiled
def _unserved_architecture() -> list[str]:
    return _unserved_by(torch.cuda.current_device() if device == "cuda" else None)


@cache
def _unserved_by(index: int | None) -> list[str]:
    reason = kernels.why_not()
    if not reason:
        return []
    compiled = ", ".join(f"sm_{arch // 10}" for arch in kernels.build_info()["architectures"])
    return [f"the CUDA kernels were compiled for {compiled} and cannot run on GPU {index}: {reason}"]
