"""The compiled extension, or why it is not used."""

from __future__ import annotations

from types import ModuleType

import torch

__all__ = ["load"]


def load() -> tuple[ModuleType | None, str]:
    """``(extension, "")``, or None and why."""
    try:
        from .. import _C
    except ImportError as error:
        return None, f"the compiled extension bcos_kernels._C is not there ({error})"
    built_for = _C.build_info()["torch"]
    # the local label of a version tells where a build comes from, not which interface it has
    if built_for.partition("+")[0] != torch.__version__.partition("+")[0]:
        return None, f"bcos_kernels._C was built for torch {built_for}, running is {torch.__version__}: build it again"
    return _C, ""
