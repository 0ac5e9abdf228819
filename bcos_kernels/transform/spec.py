"""What a B-cos transform computes, what it takes and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import call, extension

__all__ = ["Inputs", "Outputs", "Spec"]


class Inputs(NamedTuple):
    """What a transform takes."""

    x: Tensor
    """``[M, K]``, or ``[N, C, H, W]``."""
    weight: Tensor
    """``[O·M, K]``, or ``[O·M, C/groups, kH, kW]``: ``max_out`` filters M for each of O outputs."""
    bias: Tensor | None
    """``[O·M]``"""
    tensor_b: Tensor | None
    """b where it is a tensor of one value."""


class Outputs(NamedTuple):
    """What a transform returns; of what a call does not have, an empty tensor."""

    y: Tensor
    """``[M, O]``, or ``[N, O, OH, OW]``."""
    n: Tensor
    """The patch norm ``[M, 1]`` or ``[N, groups, OH, OW]``, not of a depthwise layer: it is as large as x."""
    l: Tensor  # noqa: E741
    """The linear output as y, where y cannot stand for it: b other than 1 and 2."""
    winner: Tensor
    """As y: which of the ``max_out`` filters is the maximum, uint8."""


@call.hash_kept
@dataclass(frozen=True)
class Spec(call.Spec):
    """Static options of one B-cos transform; ``stride == ()`` marks the linear layer.

    The formula, with ŵ = w/‖w‖ if ``unit`` else w (Böhle et al., CVPR 2022, eq. 3; B-cosification takes w itself)::

        l = x ⋆ ŵ + bias          the maximum over ``max_out`` filters of an output unit
        n = √(Σ_patch x² + norm_eps[0]) + norm_eps[1]
        y = (|l|/n + cos_eps)^(b-1) · l        cos_eps counts as 0 at b = 2 if ``exact_two``; y = l at b = 1
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    max_out: int = 1
    b: float | None = 2.0
    """``None`` when b is a tensor: its value is then never read by the host."""
    unit: bool = True
    norm_eps: tuple[float, float] = (1e-6, 0.0)
    cos_eps: float = 1e-6
    exact_two: bool = True
    detach: bool = False
    """Early explanation mode: the scale is a constant of the forward."""
    out_dtype: torch.dtype = torch.float32

    @property
    def is_linear(self) -> bool:
        return not self.stride

    @property
    def channel_dim(self) -> int:
        return -1 if self.is_linear else 1

    @property
    def power(self) -> int:
        """1 or 2 for that b, where the formula has no epsilon; 0 for the general formula."""
        if self.b == 2:
            return 2 if self.exact_two or self.cos_eps == 0 else 0
        return 1 if self.b == 1 else 0

    @property
    def saves_output(self) -> bool:
        """Whether y stands for l in the backward: |l| = √(|y|·n) at b = 2."""
        return self.power == 2

    @cached_property
    def native(self):
        """The same options as the compiled extension takes them."""
        options = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "detach"}
        return extension.load()[0].TransformSpec(**options)
