"""The description of one call of a transform: its options, sizes, dtypes and device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..core import call, device
from ..core.formats import channels_last
from .derived import HALF, Derived
from .spec import Inputs, Spec

__all__ = ["HALF", "Call", "of", "of_shapes"]


@call.hash_kept
@dataclass(frozen=True)
class Call(Derived):
    """One call of a transform. A linear layer counts as the 1×1 convolution of images of one pixel."""

    spec: Spec
    device: str
    x_shape: tuple[int, ...]
    """The shape of the operator's x, ``[M, K]``, ``[N, C, H, W]`` or ``[N, C, D, H, W]``."""
    weight_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    weight_dtype: torch.dtype = torch.float32
    bias: bool = False
    """Whether there is a bias; in a backward, whether its gradient is formed."""
    tf32: bool = False
    """Whether torch's settings let fp32 products round their operands to tf32; see :meth:`now`."""
    arch: str = "none"
    """The GPU's architecture: ``sm_<capability>``, ``gfx<name>``, or ``none`` where there is no GPU."""

    def now(self) -> Call:
        """The same call under torch's present settings."""
        return self._with(self.bias)

    def of_backward(self, needs: tuple[bool, ...]) -> Call:
        """The call of a backward under torch's present settings; ``needs`` has a bool for each input."""
        return self._with(needs[2])

    def _with(self, bias: bool) -> Call:
        tf32 = device.tf32(self.dtype, self.device, self.is_linear)
        return self if (self.bias, self.tf32) == (bias, tf32) else _changed(self, bias, tf32)

    def of_rows(self, rows: int) -> Call:
        """The call of as many images as ``rows`` gradients of each of them are."""
        return self if rows == 1 else _larger(self, rows)

    def needs(self, direction: str) -> tuple[bool, bool, bool, bool]:
        """For each input, whether a backward of this direction forms its gradient: all that exist, or x's alone."""
        training = direction == "training"
        return True, training, training and self.bias, training and self.tensor_b

    def example(self, device: torch.device) -> tuple[Inputs, Tensor]:
        """Random inputs for such a call and a random gradient at y; images are channels_last."""
        generator = torch.Generator(device).manual_seed(0)

        def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator, device=device).mul_(scale).to(dtype)
            return channels_last(values)

        x = random(self.x_shape, self.dtype)
        weight = random(self.weight_shape, self.weight_dtype, (self.group_channels * self.taps) ** -0.5)
        bias = random((self.filters,), self.weight_dtype) if self.bias else None
        b = torch.full((), 2.0, device=device) if self.tensor_b else None
        y_shape = (self.batch, self.outputs, *(() if self.is_linear else self.out_size))
        return Inputs(x, weight, bias, b), random(y_shape, self.out_dtype)

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


@lru_cache(maxsize=4096)
def _changed(call: Call, bias: bool, tf32: bool) -> Call:
    return replace(call, bias=bias, tf32=tf32)


@lru_cache(maxsize=4096)
def _larger(call: Call, rows: int) -> Call:
    return replace(call, x_shape=(rows * call.batch, *call.x_shape[1:]))


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of concrete tensors under torch's present settings."""
    x, weight, bias, _ = inputs
    return _made(spec, x.device, x.shape, weight.shape, x.dtype, weight.dtype, bias is not None).now()


@call.kept
def _made(spec: Spec, where: torch.device, x_shape, weight_shape, dtype, weight_dtype, bias: bool) -> Call:
    arch = device.architecture_of(where)
    return Call(spec, where.type, tuple(x_shape), tuple(weight_shape), dtype, weight_dtype, bias, arch=arch)


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
    return Call(spec, device, x_shape, weight_shape, dtype, weight_dtype or dtype, bias, tf32=tf32, arch=arch)
