"""The compiled extension, or the reason why it cannot be used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from .dispatch import other_dtype

__all__ = ["DTYPES", "imported", "load", "unavailable"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes that the C++ kernels of every op take."""

FAILED = Path(__file__).parents[1] / "_C.failed.txt"
"""The file in which setup.py leaves the reason why a build failed."""
FOLDER = Path(__file__).parents[2]
"""What holds the package: site-packages, or a checkout."""


def imported() -> ModuleType:
    """The extension, also one that was built for another torch.

    Raises:
        ImportError: it is not there, or it cannot be loaded; where its build failed, the error says why.
    """
    try:
        return import_module("bcos_kernels._C")
    except ImportError as error:
        if FAILED.exists():
            raise ImportError(f"its build failed: {FAILED.read_text(encoding='utf-8').strip()}") from error
        if isinstance(error, ModuleNotFoundError) and (FOLDER / "setup.py").exists():
            here = f"the sources in {FOLDER} are imported, where it is not built"
            cure = "an installed package is imported in any other working directory"
            raise ImportError(f"{here}: {cure}, and `python setup.py build_ext --inplace` builds it there") from error
        raise


def load() -> tuple[ModuleType | None, str]:
    """``(extension, "")``, or ``(None, reason)`` where it cannot be used."""
    try:
        _C = imported()
    except ImportError as error:
        return None, f"the compiled extension bcos_kernels._C cannot be imported ({error})"
    built_for = _C.build_info()["torch"]
    # The local label of a version (after the +) says where a build comes from, not which interface it has.
    if built_for.partition("+")[0] != torch.__version__.partition("+")[0]:
        return None, f"bcos_kernels._C was built for torch {built_for}, not for {torch.__version__}: build it again"
    return _C, ""


_, _absent = load()


def unavailable(call) -> list[str]:
    """The reasons why no C++ kernel has the dtype of a call or runs on its device; empty where they do."""
    found = [_absent] if _absent else []
    if call.device != "cpu":
        found.append(f"device is {call.device!r}, the C++ kernels run on 'cpu'")
    return found + other_dtype(call.dtype, DTYPES)
