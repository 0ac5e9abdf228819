"""The description of one call of a convolution of dynamic alignment units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..core import call
from .spec import Inputs, Spec

__all__ = ["Call", "memory_format", "of"]


@call.hash_kept
@dataclass(frozen=True)
class Call(call.Call):
    """One call of a convolution of dynamic alignment units."""

    spec: Spec
    device: str
    x_shape: tuple[int, ...]
    """``[N, C, H, W]``"""
    rank: int
    outputs: int
    """O, the number of output channels."""
    dtype: torch.dtype = torch.float32
    bias: bool = True

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of y."""
        s = self.spec
        sizes = zip(self.x_shape[2:], s.kernel, s.stride, s.padding, strict=True)
        height, width = ((size + 2 * p - k) // step + 1 for size, k, step, p in sizes)
        return height, width

    @cached_property
    def pixels(self) -> int:
        """Those of y in all images."""
        return self.x_shape[0] * prod(self.size)

    @cached_property
    def patch(self) -> int:
        """The number of values in a patch, P."""
        return self.x_shape[1] * prod(self.spec.kernel)

    @property
    def sums(self) -> torch.dtype:
        """The dtype in which products are added up."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """That of y: channels_last where x is stored so, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of these tensors."""
    x, h, weight, bias = inputs
    outputs = weight.shape[0] // (x.shape[1] * prod(spec.kernel))
    return Call(spec, x.device.type, tuple(x.shape), h.shape[1], outputs, x.dtype, bias is not None)
