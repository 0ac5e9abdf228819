"""Networks whose classifier is put in front of the pooling: then every position has logits, which are averaged.

The modules keep their names. The class of a network changes to a subclass with another order in its forward.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from torch import nn

from .rules import computes_as

__all__ = ["Head", "head_of"]


class Head(NamedTuple):
    """How the classifier of a network gets in front of its pooling."""

    linear: str
    """The name of the last linear layer."""
    reordered: type | None
    """The class that the network gets; None where the network has the attribute ``gap_reorder`` for it."""
    convolves: bool
    """Whether the linear layer becomes a 1×1 convolution."""


def head_of(network: Any) -> Head | None:
    """The head of a network of a known family, whose last layer is still linear; None for all other modules."""
    if "torchvision" in sys.modules and type(network).__module__.startswith("torchvision.models."):
        from .torchvision import FAMILIES

        reordered, name = FAMILIES.get(type(network), (None, ""))
        return Head(name, reordered, True) if reordered is not None and _is_linear(network, name) else None
    if type(network).__name__ == "SimpleViT" and _is_linear(network, "linear_head.linear"):
        if "gap_reorder" in vars(network):
            return Head("linear_head.linear", None, False)
        if type(network).__module__ == "bcos.models.vit":
            from .simple_vit import SimpleViT

            return Head("linear_head.linear", SimpleViT, False)
    return None


def _is_linear(network: nn.Module, name: str) -> bool:
    module: Any = network
    for part in name.split("."):
        module = module._modules.get(part) if isinstance(module, nn.Module) else None
    return isinstance(module, nn.Linear) and computes_as(module, nn.Linear)
