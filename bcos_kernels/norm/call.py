"""The description of one call of a norm: its options, sizes, dtypes and device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..core import call, device, formats
from ..core.formula import sums_of
from .spec import Inputs, Spec

__all__ = ["Call", "is_channels_last", "of"]


@call.hash_kept
@dataclass(frozen=True)
class Call(call.Call):
    """One call of a norm."""

    spec: Spec
    x_shape: tuple[int, ...]
    """``[N, C, *positions]``"""
    dtype: torch.dtype = torch.float32
    weight: bool = False
    """Whether there is a γ; in a backward, whether its gradient is formed."""
    bias: bool = False
    """Whether there is a β; in a backward, whether its gradient is formed."""
    given: bool = False
    """Whether the statistics are given."""
    channels_last: bool = False
    """Whether the channels of a position lie side by side in memory."""

    tf32 = False  # a norm has no product that could be rounded to it

    def of_backward(self, needs: tuple[bool, ...]) -> Call:
        """The call of a backward; ``needs`` has a bool for each input."""
        _, weight, bias, *_ = needs
        return self if (self.weight, self.bias) == (weight, bias) else call.changed(self, weight=weight, bias=bias)

    def of_rows(self, rows: int) -> Call:
        """The call of as many images as ``rows`` gradients of each of them are."""
        return call.changed(self, x_shape=(rows * self.batch, *self.x_shape[1:]))

    def needs(self, direction: str) -> tuple[bool, bool, bool, bool, bool]:
        """For each input, whether a backward of this direction forms its gradient: all that exist, or x's alone."""
        training = direction == "training"
        return True, training and self.weight, training and self.bias, False, False

    def example_of(self, random: Callable[..., Tensor]) -> tuple[Inputs, Tensor]:
        """x and the gradient are in the memory format of the call."""

        def stored(t: Tensor) -> Tensor:
            return formats.channels_last(t) if self.channels_last else t

        def parameter(there: bool, dtype: torch.dtype) -> Tensor | None:
            return random((self.channels,), dtype) if there else None

        inputs = Inputs(
            stored(random(self.x_shape, self.dtype)), parameter(self.weight, self.dtype),
            parameter(self.bias, self.dtype), parameter(self.given and self.spec.centered, self.sums),
            random((self.channels,), self.sums).abs_() if self.given else None,
        )  # fmt: skip
        return inputs, stored(random(self.x_shape, self.spec.out_dtype))

    def unserved(self, most: int) -> list[str]:
        """The reasons why no GPU kernel serves it that indexes at most so many positions or channels."""
        batch, channels, *positions = self.x_shape  # not the cached properties, which Dynamo cannot trace
        counts = {"positions of x": batch * prod(positions), "channels": channels}
        return [f"{count} {name} are above {most}, the largest index" for name, count in counts.items() if count > most]

    @property
    def label(self) -> str:
        sizes = "×".join(map(str, self.x_shape))
        options = f"over {self.spec.over}{' centered' * self.spec.centered}{' given' * self.given}"
        return f"norm {sizes} {options} {call.short(self.dtype)}"

    @cached_property
    def batch(self) -> int:
        return self.x_shape[0]

    @cached_property
    def channels(self) -> int:
        return self.x_shape[1]

    @cached_property
    def positions(self) -> int:
        return prod(self.x_shape[2:])

    @cached_property
    def statistics_shape(self) -> tuple[int, ...]:
        """The shape of the mean and of the variance that the call returns."""
        if self.given:
            return (0,)
        return self.spec.statistics_shape(self.x_shape)

    @cached_property
    def sums(self) -> torch.dtype:
        """The dtype in which sums over values of x are formed."""
        return sums_of(self.dtype)

    @cached_property
    def has_gradient_map(self) -> bool:
        return self.spec.over in ("batch", "all")

    @cached_property
    def intermediates(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """The variance; none where it is a constant of every derivative."""
        if self.given or self.spec.detach:
            return ()
        return ((self.statistics_shape, self.sums),)

    def has_second(self, frozen: bool) -> bool:
        return frozen


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of these tensors."""
    x, weight, bias, _, var = inputs
    there = weight is not None, bias is not None, var is not None
    return _made(spec, x.device, x.shape, x.dtype, *there, is_channels_last(x))


@call.kept
def _made(spec: Spec, where: torch.device, shape, dtype, weight: bool, bias: bool, given: bool, last: bool) -> Call:
    return Call(
        spec=spec, x_shape=tuple(shape), dtype=dtype, weight=weight, bias=bias, given=given, channels_last=last,
        **device.fields_of(where),
    )  # fmt: skip


def is_channels_last(x: Tensor) -> bool:
    """Whether the kernels keep the channels of a position side by side, as they do in tokens."""
    return x.dim() == 2 or formats.is_channels_last(x)
