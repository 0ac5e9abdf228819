"""The description of one call of a transform: its options, sizes, dtypes and device, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from ..core import call, device
from ..core.formats import channels_last
from ..core.formula import sums_of
from .spec import Inputs, Spec

__all__ = ["HALF", "Call", "of", "of_shapes"]

HALF = (torch.float16, torch.bfloat16)
PACKED_WIDTH = 32  # the most channels or filters of the neighbouring narrow groups that share a tile


def _option(name: str) -> Any:
    """An option of the spec, or what follows from its options alone, as an attribute of the call."""
    return cached_property(lambda described: getattr(described.spec, name))


@call.hash_kept
@dataclass(frozen=True)
class Call(call.Call):
    """One call of a transform. A linear layer counts as the 1×1 convolution of images of one pixel."""

    spec: Spec
    x_shape: tuple[int, ...]
    """The shape of the operator's x, ``[M, K]``, ``[N, C, H, W]`` or ``[N, C, D, H, W]``."""
    weight_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    bias: bool = False
    """Whether there is a bias; in a backward that does not divide x, whether its gradient is formed."""
    tf32: bool = False
    """Whether torch's settings let fp32 products round their operands to tf32; see :meth:`now`."""

    def now(self) -> Call:
        """The same call under torch's present settings."""
        return self._with(self.bias)

    def of_backward(self, needs: tuple[bool, ...]) -> Call:
        """The call of a backward under torch's present settings; ``needs`` has a bool for each input."""
        return self._with(needs[2] or self.divides_x)

    def _with(self, bias: bool) -> Call:
        tf32 = device.tf32(self.dtype, self.device, self.is_linear)
        return self if (self.bias, self.tf32) == (bias, tf32) else call.changed(self, bias=bias, tf32=tf32)

    def of_rows(self, rows: int) -> Call:
        """The call of as many images as ``rows`` gradients of each of them are."""
        return self if rows == 1 else call.changed(self, x_shape=(rows * self.batch, *self.x_shape[1:]))

    def needs(self, direction: str) -> tuple[bool, bool, bool, bool]:
        """For each input, whether a backward of this direction forms its gradient: all that exist, or x's alone."""
        training = direction == "training"
        return True, training, training and self.bias, training and self.tensor_b

    def example_of(self, random: Callable[..., Tensor]) -> tuple[Inputs, Tensor]:
        """Images are channels_last."""
        x = channels_last(random(self.x_shape, self.dtype))
        scale = (self.group_channels * self.taps) ** -0.5
        weight = channels_last(random(self.weight_shape, self.weight_dtype, scale))
        bias = random((self.filters,), self.weight_dtype) if self.bias else None
        b = torch.full((), 2.0, device=x.device) if self.tensor_b else None
        y_shape = (self.batch, self.outputs, *(() if self.is_linear else self.out_size))
        return Inputs(x, weight, bias, b), channels_last(random(y_shape, self.out_dtype))

    def unserved(self, most_rows: int | None = None) -> list[str]:
        """The reasons why no backend of kernels serves it, if ``most_rows`` is the largest number that they index."""
        found = []  # of fields and properties alone: Dynamo cannot trace a cached one
        if self.weight_dtype not in (self.dtype, torch.float32):
            found.append(f"weight dtype {self.weight_dtype} does not go with input dtype {self.dtype}")
        if self.spec.max_out > 255:
            found.append(f"max_out={self.spec.max_out} is above 255, the largest number of filters that winner holds")
        if most_rows is not None and (rows := self.padded_rows) > most_rows:
            found.append(f"{rows} pixels × groups of the padded input are above {most_rows}, the largest index")
        return found

    @property
    def label(self) -> str:
        facts = {
            "stride": (self.stride, (1, 1)), "padding": (self.padding, (0, 0)), "dilation": (self.dilation, (1, 1)),
            "groups": (self.groups, 1), "max_out": (self.max_out, 1), "b": (self.spec.b or "learned", 2.0),
        }  # fmt: skip
        unusual = "".join(f" {name}={call.short(value)}" for name, (value, usual) in facts.items() if value != usual)
        noun, window = ("linear", "") if self.is_linear else ("conv2d", " k" + "×".join(map(str, self.kernel)))
        options = (" bias" if self.bias else "") + ("" if self.unit else " raw")
        dtype = "tf32" if self.precision == "tf32" else call.short(self.dtype)
        return f"{noun} {'×'.join(map(str, self.x_shape))} -> {self.filters}{window}{unusual}{options} {dtype}"

    def is_rounding(self, name: str) -> bool:
        """True for the gradient of unit filters with a single entry, which is 0."""
        return name == "dweight" and self.unit and self.group_channels * self.taps == 1

    @property
    def amplification(self) -> float:
        return max(1.0, (self.spec.b or 0) / 2)

    is_linear = _option("is_linear")
    groups = _option("groups")
    max_out = _option("max_out")
    unit = _option("unit")
    cos_eps = _option("cos_eps")
    norm_eps = _option("norm_eps")
    out_dtype = _option("out_dtype")
    saves_linear = _option("saves_linear")
    power = _option("power")

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

    @cached_property
    def divides_x(self) -> bool:
        """Whether a backward divides x by its norm before it multiplies it by ∂L/∂n.

        Beside a bias l may be far larger than a tiny n. ∂L/∂n divided by that norm then exceeds fp32, although the
        gradient of x does not.
        """
        return self.bias and self.is_linear and self.intermediates != () and self.norm_eps[0] == 0

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


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of concrete tensors under torch's present settings."""
    x, weight, bias, _ = inputs
    return _made(spec, x.device, x.shape, weight.shape, x.dtype, weight.dtype, bias is not None).now()


@call.kept
def _made(spec: Spec, where: torch.device, x_shape, weight_shape, dtype, weight_dtype, bias: bool) -> Call:
    return Call(
        spec=spec, x_shape=tuple(x_shape), weight_shape=tuple(weight_shape), dtype=dtype, weight_dtype=weight_dtype,
        bias=bias, **device.fields_of(where),
    )  # fmt: skip


def of_shapes(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    bias: bool = False,
    tf32: bool = False,
    arch: str = "sm_90",
    **options,
) -> Call:
    """A call without tensors; ``options`` are fields of :class:`Spec`. By default a convolution has stride 1."""
    if axes := len(weight_shape) - 2:
        options = {"stride": (1,) * axes, "padding": (0,) * axes, "dilation": (1,) * axes, **options}
    else:
        options = {"norm_eps": (0.0, 1e-12), **options}
    spec = Spec(**{"out_dtype": dtype, **options})
    return Call(
        spec=spec, device=device, arch=arch, x_shape=x_shape, weight_shape=weight_shape, dtype=dtype,
        weight_dtype=weight_dtype or dtype, bias=bias, tf32=tf32,
    )  # fmt: skip
