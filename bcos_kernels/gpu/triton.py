"""Whether Triton's kernels run on a device; it is answered without importing Triton."""

from __future__ import annotations

from importlib.util import find_spec

from ..core import env

__all__ = ["INSTALLED", "unavailable"]

INSTALLED = find_spec("triton") is not None


def unavailable(where: str, arch: str) -> list[str]:
    """The reasons why no Triton kernel runs on a device of this type and architecture; empty where they do."""
    found = []
    if not INSTALLED:
        found.append("the package triton is not installed")
    if where == "cuda":
        found += _unserved_architecture(arch)
    elif where != "cpu" or not env.INTERPRETED:
        hint = ", or on 'cpu' in the interpreter (TRITON_INTERPRET=1)" if where == "cpu" else ""
        found.append(f"device is {where!r}, the Triton kernels run on 'cuda'{hint}")
    return found


def _unserved_architecture(arch: str) -> list[str]:
    if arch.startswith("sm_") and int(arch[3:]) < 80:
        return [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"]
    return []
