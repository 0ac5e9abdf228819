"""What a B-cos transform computes, what it takes and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import call

__all__ = ["Inputs", "Outputs", "Spec"]


class Inputs(NamedTuple):
    """What a transform takes."""

    x: Tensor
    """``[M, K]``, ``[N, C, H, W]`` or ``[N, C, D, H, W]``."""
    weight: Tensor
    """``[O·M, K]``, ``[O·M, C/groups, kH, kW]`` or ``[O·M, C/groups, kD, kH, kW]``: M = ``max_out`` filters for each of
    O output channels."""
    bias: Tensor | None
    """``[O·M]``"""
    tensor_b: Tensor | None
    """b, where it is a tensor of one value; else None."""


class Outputs(NamedTuple):
    """What a transform returns; an output that a call does not have is an empty tensor."""

    y: Tensor
    """``[M, O]``, ``[N, O, OH, OW]`` or ``[N, O, OD, OH, OW]``."""
    n: Tensor
    """The patch norm, ``[M, 1]`` or, for ``groups`` in place of O, of y's shape; empty for a depthwise layer, where it
    is as large as x."""
    l: Tensor  # noqa: E741
    """The linear output, of y's shape, where y cannot stand for it: for b other than 1 and 2, and for b = 2 in fp16."""
    winner: Tensor
    """Which of the ``max_out`` filters is the largest, of y's shape, uint8; empty for ``max_out=1``."""


@call.hash_kept
@dataclass(frozen=True)
class Spec(call.Spec):
    """The static options of a B-cos transform.

    ``stride``, ``padding`` and ``dilation`` have a value for each of two or three axes, and are ``()`` for a linear
    layer. A convolution with one axis is one with two, of which the first has one position.

    The formula, with ŵ = w/‖w‖ if ``unit`` else w (Böhle et al., CVPR 2022, eq. 3; B-cosification takes w itself)::

        l = x ⋆ ŵ + bias          the maximum over the ``max_out`` filters of an output channel
        n = √(Σ_patch x² + norm_eps[0]) + norm_eps[1]
        y = (|l|/n + cos_eps)^(b-1) · l        y = l at b = 1; at b = 2, ``exact_two`` leaves cos_eps out
    """

    native_class = "TransformSpec"

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    border: tuple[int, ...] = ()
    """How many positions at the low and at the high end of each axis of x the patch norm takes as 0: padding that is
    not zeros. Empty where there are none; beside a border ``padding`` is 0."""
    groups: int = 1
    max_out: int = 1
    b: float | None = 2.0
    """b, or None where b is a tensor; the host never reads the tensor's value."""
    unit: bool = True
    norm_eps: tuple[float, float] = (1e-6, 0.0)
    cos_eps: float = 1e-6
    exact_two: bool = True
    detach: bool = False
    """The early explanation mode: the forward detaches the scale."""
    out_dtype: torch.dtype = torch.float32

    @property
    def is_linear(self) -> bool:
        return not self.stride

    @property
    def power(self) -> int:
        """1 or 2 where b is that number and the formula has no cos_eps; 0 for the general formula."""
        if self.b == 2:
            return 2 if self.exact_two or self.cos_eps == 0 else 0
        return 1 if self.b == 1 else 0

    @property
    def saves_output(self) -> bool:
        """Whether the backward needs y, which stands for l at b = 2: |l| = √(|y|·n).

        Not in fp16: its smallest normal number is 6e-5, and y, about the square of l, loses its digits below that while
        l still has all of them.
        """
        return self.power == 2 and self.out_dtype != torch.float16

    @property
    def saves_linear(self) -> bool:
        """Whether the backward needs l, because y cannot stand for it."""
        return self.power != 1 and not self.saves_output
