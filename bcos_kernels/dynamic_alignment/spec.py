"""What a convolution of dynamic alignment units computes, what it takes and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import call

__all__ = ["NORMS", "Inputs", "Outputs", "Spec"]

NORMS = ("squash", "l1", "l2")
"""How the dynamic weights are rescaled; see :class:`Spec`."""


class Inputs(NamedTuple):
    """What the units of one layer take: C channels of x, O outputs, rank R, P = C·kH·kW values in a patch."""

    x: Tensor
    """``[N, C, H, W]``"""
    h: Tensor
    """``[N, R, OH, OW]``: the projection of every patch to R values."""
    weight: Tensor
    """``[P·O, R]``: row p·O + o makes the dynamic weight of output o for value p of the patch out of h."""
    bias: Tensor | None
    """``[P·O]``"""

    def gradients(self, found, needs) -> tuple[Tensor | None, ...]:
        """``found`` in the inputs' dtypes: zeros in the place of None, which a frozen input has, if they are needed."""
        return tuple(
            None if not need or t is None else torch.zeros_like(t) if g is None else g.to(t.dtype)
            for g, t, need in zip(found, self, needs, strict=True)
        )


class Outputs(NamedTuple):
    """What a forward returns. The pixels of all images are those of y, image after image."""

    y: Tensor
    """``[N, O, OH, OW]``, of x's dtype."""
    norm: Tensor
    """``[O, N·OH·OW]``: the norms of the dynamic weights, fp32, or fp64 for an x of fp64."""
    l: Tensor  # noqa: E741
    """``[O, N·OH·OW]``, of norm's dtype: the products of patches and dynamic weights. Empty with ``detach``."""


@call.hash_kept
@dataclass(frozen=True)
class Spec(call.Spec):
    """The static options of a convolution of dynamic alignment units (Böhle et al., CVPR 2021, eqs. 1 to 3)::

        w = weight h + bias                     the dynamic weights of a pixel, one vector of a patch's size an output
        y = scale(‖w‖) · wᵀu                    u: the patch of x that the pixel sees

    ``norm`` names the norm and the scale: ``"squash"``, ‖w‖₂/(1 + ‖w‖₂²); ``"l2"``, 1/‖w‖₂; ``"l1"``, 1/‖w‖₁. The
    scale of a zero w is 0.
    """

    native_class = "DynamicAlignmentSpec"
    in_python = frozenset[str]()

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    norm: str = "squash"
    detach: bool = False
    """The explanation mode: the forward detaches w and its norm."""

    saves_output = False
