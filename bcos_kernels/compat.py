"""Imports the reference package where torchvision's compiled operators do not load."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

__all__ = ["import_reference"]

_stubs: list[torch.library.Library] = []


def import_reference() -> ModuleType:
    """The package ``bcos``; raises ImportError if it, or torchvision, which it needs, is not installed.

    A torchvision built for another torch fails to import because the schemas of two operators that ``bcos`` never
    calls are missing; declaring them is enough.
    """
    try:
        return importlib.import_module("bcos")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _stubs:
            raise
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _stubs.append(library)
    return importlib.import_module("bcos")
