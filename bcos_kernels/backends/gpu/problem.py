"""One transform in numbers, as the kernels see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

import torch
from torch import Tensor

from .device import architecture

__all__ = ["HALF", "Problem", "power_of_two", "problem"]

HALF = (torch.float16, torch.bfloat16)
PACKED_WIDTH = 32  # channels or filters of neighbouring narrow groups that share a tile


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two of at least ``n`` and ``least``."""
    return 1 << max(n - 1, least - 1, 0).bit_length()


@dataclass(frozen=True)
class Problem:
    """Sizes, dtypes and formula of one call; a linear layer is the 1×1 convolution of images of one pixel."""

    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    max_out: int = 1
    exponent: float = 2.0
    """b, or 0 where it is a tensor."""
    unit: bool = True
    eps: tuple[float, float, float] = (1e-6, 0.0, 1e-6)
    """Inside the root of the norm, beside it, and beside the cosine."""
    exact_two: bool = True
    bias: bool = False
    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype = torch.bfloat16
    out_dtype: torch.dtype = torch.bfloat16
    tf32: bool = False
    arch: str = "sm_90"
    """``sm_<capability>``, ``gfx<name>`` or ``none``."""
    is_linear: bool = False

    def __post_init__(self) -> None:
        # a key of dictionaries at every call: its hash is formed once
        object.__setattr__(self, "_hash", hash(tuple(vars(self).values())))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def tensor_b(self) -> bool:
        return self.exponent == 0

    @cached_property
    def power(self) -> int:
        """1 or 2 for that b, 0 for the general formula."""
        if self.exponent == 2:
            return 2 if self.exact_two or self.eps[2] == 0 else 0
        return 1 if self.exponent == 1 else 0

    @cached_property
    def out_size(self) -> tuple[int, int]:
        return tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                self.x_shape[2:], self.padding, self.dilation, self.weight_shape[2:], self.stride, strict=True
            )
        )

    @cached_property
    def in_pixels(self) -> int:
        return self.x_shape[0] * self.x_shape[2] * self.x_shape[3]

    @cached_property
    def pixels(self) -> int:
        """Output pixels, N·OH·OW."""
        return self.x_shape[0] * self.out_size[0] * self.out_size[1]

    @cached_property
    def filters(self) -> int:
        return self.weight_shape[0]

    @cached_property
    def outputs(self) -> int:
        return self.filters // self.max_out

    @cached_property
    def taps(self) -> int:
        return self.weight_shape[2] * self.weight_shape[3]

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
        """One filter to a channel."""
        return self.groups > 1 and self.group_channels == self.group_filters == 1

    @cached_property
    def saves_norm(self) -> bool:
        """Where every channel is a group the norm is as large as x: the backward forms it again."""
        return self.power != 1 and (self.groups == 1 or self.group_channels > 1)

    @cached_property
    def pack(self) -> int:
        """Groups that share a tile."""
        most = PACKED_WIDTH // max(self.group_channels, self.group_filters) if self.groups > 1 else 1
        return max((d for d in range(1, most + 1) if self.groups % d == 0), default=1)

    @cached_property
    def align(self) -> int:
        """What divides every row's length, for wide loads: Triton itself only knows multiples of 16."""
        return gcd(self.group_channels, self.group_filters, self.group_outputs, 16)

    @cached_property
    def flat(self) -> bool:
        """Whether taps and channels are walked as one axis, because the channels do not fill a step."""
        return self.pack == 1 and self.taps > 1 and self.group_channels < 16

    @cached_property
    def raw_weights(self) -> bool:
        """Whether the products take w itself, unrounded, and 1/‖w‖ as a factor.

        A fp16 product of weights of any length could overflow; a bias's gradient must not have the factor.
        """
        return self.unit and self.dtype == self.weight_dtype and self.dtype != torch.float16 and not self.bias

    @cached_property
    def geometry(self) -> tuple | None:
        """As the schemas have it; None of a linear layer."""
        return None if self.is_linear else (self.stride, self.padding, self.dilation, self.groups)

    @cached_property
    def formula_arguments(self) -> tuple:
        """As the schemas have them."""
        return self.max_out, self.exponent, self.unit, *self.eps, self.exact_two

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """H, W, OH, OW."""
        return *self.x_shape[2:], *self.out_size

    @cached_property
    def window(self) -> dict:
        """The window's constants in the kernels."""
        names = ("KH", "KW", "SH", "SW", "PH", "PW", "DH", "DW")
        return dict(zip(names, (*self.weight_shape[2:], *self.stride, *self.padding, *self.dilation), strict=True))

    @cached_property
    def formula(self) -> dict:
        """The formula's constants in the kernels."""
        return {
            "POWER": self.power,
            "TENSOR_B": self.tensor_b,
            "EXACT_TWO": self.exact_two,
            "EXACT": self.exact,
        }

    @cached_property
    def exact(self) -> bool:
        """Whether results are to be right to fp32's last places."""
        return self.dtype == torch.float32

    @cached_property
    def precision(self) -> str:
        """Of a product of fp32 tiles."""
        return "tf32" if self.tf32 and self.dtype == torch.float32 else "ieee"


def problem(
    x: Tensor, weight: Tensor, bias: bool, tensor_b: bool, rest: tuple, out_dtype: torch.dtype, is_linear: bool
) -> Problem:
    """The call of an operator in numbers; ``rest`` is its geometry and formula, in the order of the schemas."""
    arch = architecture(x.get_device()) if x.is_cuda else "none"
    dtype = x.dtype
    tf32 = dtype is torch.float32 and _allows_tf32(is_linear)
    facts = (bias, tensor_b, dtype, weight.dtype, out_dtype, tf32, arch, is_linear)
    try:
        return _problem(x.shape, weight.shape, rest, *facts)
    except TypeError:  # through torch.library pairs come as lists, which have no hash
        return _problem(x.shape, weight.shape, tuple(tuple(a) if isinstance(a, list) else a for a in rest), *facts)


@lru_cache(maxsize=4096)
def _problem(x_shape, weight_shape, rest, bias, tensor_b, dtype, weight_dtype, out_dtype, tf32, arch, is_linear):
    geometry, (max_out, exponent, unit, inside, outside, cos_eps, exact_two) = rest[:-7], rest[-7:]
    stride, padding, dilation, groups = geometry or ((1, 1), (0, 0), (1, 1), 1)
    pixel = (1, 1) if is_linear else ()
    return Problem(
        (*x_shape, *pixel), (*weight_shape, *pixel), stride, padding, dilation, groups, max_out,
        0.0 if tensor_b else exponent, unit, (inside, outside, cos_eps), exact_two, bias, dtype, weight_dtype,
        out_dtype, tf32, arch, is_linear,
    )  # fmt: skip


def _allows_tf32(is_linear: bool) -> bool:
    backends = torch.backends
    chain = (backends.cuda.matmul,) if is_linear else (backends.cudnn.conv, backends.cudnn)
    settings = (place.fp32_precision for place in (*chain, backends))
    return next((setting for setting in settings if setting != "none"), "ieee") == "tf32"
