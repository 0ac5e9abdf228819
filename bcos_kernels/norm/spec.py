"""What a norm computes, what it takes and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import call

__all__ = ["OVER", "Inputs", "Outputs", "Spec"]

OVER = ("batch", "all", "group", "position")
"""What the statistics of a norm are taken over; see :class:`Spec`."""


class Inputs(NamedTuple):
    """What a norm takes; C is the number of channels."""

    x: Tensor
    """``[N, C, *positions]``; ``[M, C]`` for tokens."""
    weight: Tensor | None
    """γ, ``[C]``."""
    bias: Tensor | None
    """β, ``[C]``."""
    mean: Tensor | None
    """The mean of every channel where it is given, ``[C]``; it is a constant."""
    var: Tensor | None
    """The variance of every channel where it is given, ``[C]``; it is a constant. None: both are computed from x."""


class Outputs(NamedTuple):
    """What a norm returns. The statistics are fp32, or fp64 for an x of fp64; they are empty where they were given."""

    y: Tensor
    """Of x's shape."""
    mean: Tensor
    """``[C]`` over the batch, ``[1]`` over all, ``[N, groups]`` over groups, ``[N, *positions]`` at positions."""
    var: Tensor
    """The biased variance, of mean's shape."""


@call.hash_kept
@dataclass(frozen=True)
class Spec(call.Spec):
    """The static options of a norm::

        y = γ · (x − [centered] mean) / √(var + eps) + β

    ``var`` is the biased variance around the mean, also where the norm is not centered. ``over`` says which values
    share a mean and a variance: ``"batch"``, those of a channel; ``"all"``, all of x; ``"group"``, those of ``groups``
    groups of channels of an image; ``"position"``, the channels at a position.
    """

    native_class = "NormSpec"

    over: str = "batch"
    groups: int = 1
    centered: bool = False
    eps: float = 1e-5
    detach: bool = False
    """The early explanation mode: the forward detaches the variance; the mean is differentiated."""
    out_dtype: torch.dtype = torch.float32
    paired: bool = False
    """Whether the B-cos layer before it forms dx; see :mod:`bcos_kernels.core.pairs`."""

    saves_output = False

    def statistics_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mean and of the variance of an x ``[N, C, *positions]``."""
        batch, channels, *positions = x_shape
        shapes = {"batch": (channels,), "all": (1,), "group": (batch, self.groups)}
        return shapes.get(self.over, (batch, *positions))
