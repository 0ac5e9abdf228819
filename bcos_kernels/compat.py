"""Imports torchvision and the package ``bcos`` even where torchvision's compiled operators cannot be loaded."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

__all__ = ["declare_torchvision_operators_when_needed", "import_reference"]

OPERATORS = ("nms", "qnms")


def import_reference() -> ModuleType:
    """The package ``bcos``. Raises ImportError if it is not installed, or torchvision, which it needs."""
    declare_torchvision_operators_when_needed()
    return importlib.import_module("bcos")


def declare_torchvision_operators_when_needed() -> None:
    """Makes it possible to import a torchvision that was built for another torch.

    Its import would fail because two operators, which B-cos networks never call, are not declared. They are declared
    just before the import needs them, unless torchvision has declared them itself.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """An import finder that finds no module; Python asks it for one just before torchvision needs the operators."""

    _declared: torch.library.Library | None = None

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name != "torchvision._meta_registrations" or self._declared is not None:
            return
        missing = [op for op in OPERATORS if not hasattr(torch.ops.torchvision, op)]
        if missing:
            self._declared = library = torch.library.Library("torchvision", "FRAGMENT")
            for op in missing:
                library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
