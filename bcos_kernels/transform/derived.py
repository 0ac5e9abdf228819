"""What follows from the options, shapes and dtypes of a transform: sizes, the formula, and how kernels walk it."""

from __future__ import annotations

from functools import cached_property
from math import gcd, prod
from typing import Any

import torch

from ..core import call
from ..core.formula import sums_of
from .spec import Spec

__all__ = ["HALF", "Derived"]

HALF = (torch.float16, torch.bfloat16)
PACKED_WIDTH = 32  # the most channels or filters of the neighbouring narrow groups that share a tile


def _option(name: str) -> Any:
    """An option of the spec, or what follows from its options alone, as an attribute of the call."""
    return cached_property(lambda described: getattr(described.spec, name))


class Derived(call.Call):
    """The properties of :class:`bcos_kernels.transform.call.Call`, which has the fields that they follow from."""

    spec: Spec
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    dtype: torch.dtype
    weight_dtype: torch.dtype
    bias: bool
    tf32: bool

    is_linear: bool = _option("is_linear")
    groups: int = _option("groups")
    max_out: int = _option("max_out")
    unit: bool = _option("unit")
    cos_eps: float = _option("cos_eps")
    norm_eps: tuple[float, float] = _option("norm_eps")
    out_dtype: torch.dtype = _option("out_dtype")
    saves_linear: bool = _option("saves_linear")
    power: int = _option("power")

    # ---- the window

    @cached_property
    def in_size(self) -> tuple[int, ...]:
        return (1, 1) if self.is_linear else self.x_shape[2:]

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        return (1, 1) if self.is_linear else self.weight_shape[2:]

    @cached_property
    def stride(self) -> tuple[int, ...]:
        return self.spec.stride or (1, 1)

    @cached_property
    def padding(self) -> tuple[int, ...]:
        return self.spec.padding or (0, 0)

    @cached_property
    def dilation(self) -> tuple[int, ...]:
        return self.spec.dilation or (1, 1)

    @cached_property
    def out_size(self) -> tuple[int, ...]:
        walk = zip(self.in_size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        return tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in walk)

    @cached_property
    def planar(self) -> bool:
        """Whether the window has two axes and sees the same input as the patch norm: all that our own products walk."""
        return len(self.in_size) == 2 and not self.spec.border

    @cached_property
    def pixelwise(self) -> bool:
        """Whether a patch is one pixel, and each pixel a patch."""
        ones = (1,) * len(self.in_size)
        return self.taps == 1 and self.stride == ones and not any(self.padding) and not self.spec.border

    @cached_property
    def taps(self) -> int:
        return prod(self.kernel)

    # ---- sizes

    @cached_property
    def batch(self) -> int:
        return self.x_shape[0]

    @cached_property
    def channels(self) -> int:
        return self.x_shape[1]

    @cached_property
    def in_pixels(self) -> int:
        return self.batch * prod(self.in_size)

    @cached_property
    def pixels(self) -> int:
        """The number of output pixels, N·OH·OW."""
        return self.batch * prod(self.out_size)

    @property
    def flops(self) -> int:
        """The FLOP of the products with the filters, as many as those of either gradient of them."""
        return 2 * self.pixels * self.filters * self.group_channels * self.taps

    @property
    def padded_rows(self) -> int:
        """The pixels of the padded input times the groups: the most rows that a kernel indexes."""
        if self.spec.is_linear:
            return self.x_shape[0]
        padded = [size + 2 * pad for size, pad in zip(self.x_shape[2:], self.spec.padding, strict=True)]
        return self.x_shape[0] * prod(padded) * self.spec.groups

    @cached_property
    def filters(self) -> int:
        return self.weight_shape[0]

    @cached_property
    def outputs(self) -> int:
        return self.filters // self.max_out

    @cached_property
    def group_channels(self) -> int:
        return self.weight_shape[1]

    @cached_property
    def group_filters(self) -> int:
        return self.filters // self.groups

    @cached_property
    def group_outputs(self) -> int:
        return self.outputs // self.groups

    @cached_property
    def depthwise(self) -> bool:
        """Whether every channel is a group of its own with one filter."""
        return self.groups > 1 and self.group_channels == self.group_filters == 1

    # ---- the formula

    @cached_property
    def tensor_b(self) -> bool:
        return self.spec.b is None

    @cached_property
    def b_minus_1(self) -> float:
        """The scale's exponent; not used where b is a tensor."""
        return (self.spec.b or 0.0) - 1

    @cached_property
    def saves_norm(self) -> bool:
        """Whether n is saved; where every channel is a group, n is as large as x and the backward computes it again."""
        return self.power != 1 and (self.groups == 1 or self.group_channels > 1)

    @cached_property
    def intermediates(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """n and l; none where the scale is a constant of every derivative."""
        if self.spec.detach or self.power == 1:
            return ()
        size = () if self.is_linear else self.out_size
        return ((self.batch, self.groups, *size), self.sums), ((self.batch, self.outputs, *size), self.out_dtype)

    @cached_property
    def takes_gradient_map(self) -> bool:
        return self.spec.saves_output

    def has_second(self, frozen: bool) -> bool:
        return not self.tensor_b

    # ---- how kernels walk the call

    @cached_property
    def pack(self) -> int:
        """The number of groups that share a tile."""
        most = PACKED_WIDTH // max(self.group_channels, self.group_filters) if self.groups > 1 else 1
        return max((d for d in range(1, most + 1) if self.groups % d == 0), default=1)

    @cached_property
    def align(self) -> int:
        """A power of two that divides the length of every row, for wide loads; Triton detects only multiples of 16."""
        return gcd(self.group_channels, self.group_filters, self.group_outputs, 16)

    @cached_property
    def flat(self) -> bool:
        """Whether taps and channels are walked as one axis, because the channels alone do not fill a step."""
        return self.pack == 1 and self.taps > 1 and self.group_channels < 16

    @cached_property
    def raw_weights(self) -> bool:
        """Whether the products take w itself and multiply the result by alpha, instead of taking a rounded ŵ.

        Not in fp16, where a product with large weights could overflow, and not with a bias, because the gradient of
        the bias must not be multiplied by alpha.
        """
        return self.unit and self.dtype == self.weight_dtype and self.dtype != torch.float16 and not self.bias

    @cached_property
    def sums(self) -> torch.dtype:
        """The dtype in which sums over values of x are formed."""
        return sums_of(self.dtype)

    @cached_property
    def exact(self) -> bool:
        """Whether results must be accurate to the last places of fp32 or fp64."""
        return self.dtype not in HALF

    @cached_property
    def precision(self) -> str:
        """The precision of a product of fp32 tiles, as Triton names it."""
        return "tf32" if self.tf32 and self.dtype == torch.float32 else "ieee"
