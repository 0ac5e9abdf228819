"""One call of a transform in numbers, as every kernel sees it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from math import gcd, prod

import torch
from torch import Tensor

from ..core import call, device
from .spec import Inputs, Spec

__all__ = ["HALF", "Call", "of", "of_shapes", "power_of_two"]

HALF = (torch.float16, torch.bfloat16)
PACKED_WIDTH = 32  # channels or filters of neighbouring narrow groups that share a tile


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two of at least ``n`` and ``least``."""
    return 1 << max(n - 1, least - 1, 0).bit_length()


@call.hash_kept
@dataclass(frozen=True)
class Call(call.Call):
    """Options, sizes, dtypes and device of one call; a linear layer is the 1×1 convolution of images of one pixel."""

    spec: Spec
    device: str
    x_shape: tuple[int, ...]
    """Of the operator's input, ``[M, K]`` or ``[N, C, H, W]``."""
    weight_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    bias: bool = False
    """Whether there is one; in a backward, whether its gradient is formed."""
    zero_padded: bool = True
    """False when the convolution's input was padded with anything but zeros: the patch norm then sees another input."""
    tf32: bool = False
    """Whether fp32 products may round their operands to tf32: a setting of torch, see :meth:`now`."""
    arch: str = "none"
    """``sm_<capability>``, ``gfx<name>`` or ``none``: of the GPU."""

    def now(self) -> Call:
        """The call under torch's settings now."""
        return self._with(self.bias)

    def of_backward(self, needs: tuple[bool, ...]) -> Call:
        """The call of a backward that forms these gradients, in the order of the inputs, under torch's settings now."""
        return self._with(needs[2])

    def _with(self, bias: bool) -> Call:
        tf32 = device.tf32(self.dtype, self.device, self.is_linear)
        return self if (self.bias, self.tf32) == (bias, tf32) else _changed(self, bias, tf32)

    def words(self) -> str:
        """What decides how the call is served, the same in every run; the architecture is the device's."""
        mine = (f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name not in ("spec", "device", "arch"))
        options = (f"{f.name}={getattr(self.spec, f.name)}" for f in fields(self.spec) if f.name != "detach")
        return " ".join((*mine, *options))

    def example(self, device: torch.device) -> tuple[Inputs, Tensor]:
        """Random inputs of such a call, and a gradient of its output; images are channels_last."""
        generator = torch.Generator(device).manual_seed(0)

        def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)
            return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

        x = random(self.x_shape, self.dtype)
        weight = random(self.weight_shape, self.weight_dtype, (self.group_channels * self.taps) ** -0.5)
        bias = random((self.filters,), self.weight_dtype) if self.bias else None
        b = torch.full((), 2.0, device=device) if self.tensor_b else None
        y_shape = (self.batch, self.outputs, *(() if self.is_linear else self.out_size))
        return Inputs(x, weight, bias, b), random(y_shape, self.out_dtype)

    def is_rounding(self, name: str) -> bool:
        """The gradient of a unit filter of one entry is 0."""
        return name == "dweight" and self.unit and self.group_channels * self.taps == 1

    @property
    def amplification(self) -> float:
        return max(1.0, (self.spec.b or 0) / 2)

    @property
    def is_linear(self) -> bool:
        return self.spec.is_linear

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
        """Output pixels, N·OH·OW."""
        return self.batch * prod(self.out_size)

    @property
    def padded_rows(self) -> int:
        """Pixels × groups of the input, padding counted in: the most rows that a kernel indexes."""
        if self.spec.is_linear:
            return self.x_shape[0]
        batch, _, height, width = self.x_shape
        pads = self.spec.padding
        return batch * (height + 2 * pads[0]) * (width + 2 * pads[1]) * self.spec.groups

    @cached_property
    def groups(self) -> int:
        return self.spec.groups

    @cached_property
    def max_out(self) -> int:
        return self.spec.max_out

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
        """One filter to a channel."""
        return self.groups > 1 and self.group_channels == self.group_filters == 1

    # ---- the formula

    @cached_property
    def tensor_b(self) -> bool:
        return self.spec.b is None

    @cached_property
    def b_minus_1(self) -> float:
        """The scale's exponent; unused where b is a tensor."""
        return (self.spec.b or 0.0) - 1

    @cached_property
    def power(self) -> int:
        return self.spec.power

    @cached_property
    def unit(self) -> bool:
        return self.spec.unit

    @cached_property
    def cos_eps(self) -> float:
        return self.spec.cos_eps

    @cached_property
    def norm_eps(self) -> tuple[float, float]:
        return self.spec.norm_eps

    @cached_property
    def out_dtype(self) -> torch.dtype:
        return self.spec.out_dtype

    @cached_property
    def saves_norm(self) -> bool:
        """Where every channel is a group the norm is as large as x: the backward forms it again."""
        return self.power != 1 and (self.groups == 1 or self.group_channels > 1)

    @cached_property
    def saves_linear(self) -> bool:
        """Whether y cannot stand for l in the backward."""
        return self.power == 0

    # ---- how kernels walk it

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
    def exact(self) -> bool:
        """Whether results are to be right to fp32's last places."""
        return self.dtype == torch.float32

    @cached_property
    def precision(self) -> str:
        """Of a product of fp32 tiles."""
        return "tf32" if self.tf32 and self.dtype == torch.float32 else "ieee"


@lru_cache(maxsize=4096)
def _changed(call: Call, bias: bool, tf32: bool) -> Call:
    return replace(call, bias=bias, tf32=tf32)


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of concrete tensors under torch's settings now."""
    x, weight, bias, _ = inputs
    facts = spec, x.device, x.shape, weight.shape, x.dtype, weight.dtype, bias is not None
    try:
        return _kept(*facts).now()
    except TypeError:  # a symbol of a compiler has no hash
        return _made(*facts).now()


def _made(spec: Spec, where: torch.device, x_shape, weight_shape, dtype, weight_dtype, bias: bool) -> Call:
    arch = device.architecture_of(where)
    return Call(spec, where.type, tuple(x_shape), tuple(weight_shape), dtype, weight_dtype, bias, arch=arch)


_kept = lru_cache(maxsize=4096)(_made)


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
    """A call without tensors; ``options`` are those of a :class:`Spec`, by default of a convolution of stride 1."""
    if len(weight_shape) == 4:
        options = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), **options}
    else:
        options = {"norm_eps": (0.0, 1e-12), **options}
    spec = Spec(**{"out_dtype": dtype, **options})
    return Call(spec, device, x_shape, weight_shape, dtype, weight_dtype or dtype, bias, tf32=tf32, arch=arch)
