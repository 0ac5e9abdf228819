"""The two descriptions that travel down the floors: what a transform computes, and one call of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Call", "Spec"]


@dataclass(frozen=True)
class Spec:
    """Static parameters of one B-cos transform; ``stride == ()`` marks the linear layer.

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
    def noun(self) -> str:
        """The name of the operator."""
        return "linear" if self.is_linear else "conv2d"

    @property
    def channel_dim(self) -> int:
        return -1 if self.is_linear else 1

    @property
    def saves_output(self) -> bool:
        """Whether y stands for l in the backward: |l| = √(|y|·n) at b = 2."""
        return self.b == 2 and (self.exact_two or self.cos_eps == 0)

    @property
    def geometry(self) -> tuple:
        """Arguments of the convolution, in the order of the operators' schemas."""
        return () if self.is_linear else (self.stride, self.padding, self.dilation, self.groups)

    @property
    def formula(self) -> tuple:
        """Arguments of the transform, in the order of the operators' schemas."""
        exponent = 0.0 if self.b is None else self.b
        return self.max_out, exponent, self.unit, *self.norm_eps, self.cos_eps, self.exact_two

    @classmethod
    def from_operator(cls, options: tuple, has_tensor_b: bool, detach: bool, out_dtype: torch.dtype) -> Spec:
        """The spec of an operator's call: ``options`` are ``geometry`` and ``formula``, one after the other."""
        *geometry, max_out, exponent, unit, inside, outside, cos_eps, exact_two = options
        stride, padding, dilation, groups = geometry or ((), (), (), 1)
        return cls(
            tuple(stride), tuple(padding), tuple(dilation), groups, max_out, None if has_tensor_b else exponent, unit,
            (inside, outside), cos_eps, exact_two, detach, out_dtype,
        )  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What a backend needs to know to say whether it serves a call."""

    spec: Spec
    device: str
    dtype: torch.dtype
    weight_dtype: torch.dtype
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    zero_padded: bool = True
    """False when the convolution's input was padded with anything but zeros: the patch norm then sees another input."""
