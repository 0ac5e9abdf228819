"""The description of one call of a convolution of dynamic alignment units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ..core import call, device
from ..core.formula import sums_of
from .spec import Inputs, Spec

__all__ = ["Call", "of"]

_MOST = 2**30  # leaves the end of the last tile of a GPU kernel an index of 32 bits


@call.hash_kept
@dataclass(frozen=True)
class Call(call.Call):
    """One call of a convolution of dynamic alignment units."""

    spec: Spec
    x_shape: tuple[int, ...]
    """``[N, C, H, W]``"""
    rank: int
    outputs: int
    """O, the number of output channels."""
    dtype: torch.dtype = torch.float32
    bias: bool = True
    tf32: bool = False
    """Whether torch's settings let fp32 products round their operands to tf32; see :meth:`now`."""

    def now(self) -> Call:
        """The same call under torch's present settings."""
        tf32 = device.tf32(self.dtype, self.device, is_linear=False)
        return self if self.tf32 == tf32 else call.changed(self, tf32=tf32)

    def of_backward(self, needs: tuple[bool, ...]) -> Call:
        """The call of a backward under torch's present settings."""
        return self.now()

    def needs(self, direction: str) -> tuple[bool, bool, bool, bool]:
        """For each input, whether a backward of this direction forms its gradient: all that exist, or x's alone."""
        training = direction == "training"
        return True, training, training, training and self.bias

    def example_of(self, random: Callable[..., Tensor]) -> tuple[Inputs, Tensor]:
        """The dynamic weights are around 1 in size."""
        images, rows = self.x_shape[0], self.patch * self.outputs
        weight = random((rows, self.rank), self.dtype, (self.rank * self.patch) ** -0.5)
        bias = random((rows,), self.dtype, self.patch**-0.5) if self.bias else None
        x = random(self.x_shape, self.dtype)
        h, grad = (random((images, count, *self.size), self.dtype) for count in (self.rank, self.outputs))
        return Inputs(x, h, weight, bias), grad

    def unserved(self) -> list[str]:
        """The reasons why no GPU kernel serves it: sizes that none of them indexes."""
        (images, channels, *size), s = self.x_shape, self.spec  # not the cached properties, which Dynamo cannot trace
        height, width = padded = [n + 2 * p for n, p in zip(size, s.padding, strict=True)]
        steps = [(n - k) // step + 1 for n, k, step in zip(padded, s.kernel, s.stride, strict=True)]
        counts = {
            "pixels": images * prod(steps), "rows of weight": channels * prod(s.kernel) * self.outputs,
            "values of rank": self.rank, "pixels of padded height": height, "pixels of padded width": width,
        }  # fmt: skip
        return [
            f"{count} {name} are above {_MOST}, the largest index" for name, count in counts.items() if count > _MOST
        ]

    def takes_rows(self, rows: int) -> bool:
        """Whether one backward of a GPU kernel takes so many rows of the dynamic linear map for every image."""
        return rows * self.pixels <= _MOST

    @property
    def label(self) -> str:
        sizes = "×".join(map(str, self.x_shape))
        window = "".join(f" {name}={call.short(getattr(self.spec, name))}" for name in ("kernel", "stride", "padding"))
        dtype = "tf32" if self.tf32 else call.short(self.dtype)
        return f"alignment {sizes} -> {self.outputs}{window} rank={self.rank} {self.spec.norm} {dtype}"

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
    def flops(self) -> int:
        """The FLOP of the products that form the dynamic weights, as many as those of either gradient of them."""
        return 2 * self.pixels * self.patch * self.outputs * self.rank

    @property
    def sums(self) -> torch.dtype:
        """The dtype in which products are added up."""
        return sums_of(self.dtype)


def of(inputs: Inputs, spec: Spec) -> Call:
    """The call of these tensors."""
    x, h, weight, bias = inputs
    outputs = weight.shape[0] // (x.shape[1] * prod(spec.kernel))
    return Call(
        spec=spec, x_shape=tuple(x.shape), rank=h.shape[1], outputs=outputs, dtype=x.dtype, bias=bias is not None,
        **device.fields_of(x.device),
    )  # fmt: skip
