"""The kinds of modules that are accelerated; whoever goes through all of them finds them here."""

from __future__ import annotations

from typing import Any

import torch

from ..modules import Detachable
from . import alignment, attention, gate, layer, norm
from .kind import Kind

__all__ = ["KINDS", "kind_of"]

KINDS = {kind.name: kind for kind in (layer.KIND, alignment.KIND, norm.KIND, attention.KIND, gate.KIND)}


def kind_of(module: Any) -> Kind | None:
    """The kind of which a module is a candidate; None for all other modules, and for those of this package."""
    if isinstance(module, Detachable):
        return None
    if "_modules" not in vars(module) and not isinstance(module, torch.jit.ScriptModule):  # not yet made
        return None
    return next((kind for kind in KINDS.values() if kind.is_candidate(module)), None)
