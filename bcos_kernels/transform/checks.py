"""Checks of a transform's arguments: every error names the argument, its value and what is allowed."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from ..core.checks import autocast_dtype, check_dense, described, integer, real, sizes

__all__ = [
    "AXES", "PADDING_MODES", "channels", "convolution_geometry", "convolution_sizes", "exponent", "filters",
    "norm_epsilons", "padding_amounts", "result_dtype", "single_filters", "tensors",
]  # fmt: skip

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def norm_epsilons(value) -> tuple[float, float]:
    """``norm_eps`` as two floats, one of them above 0, because a zero patch would have no cosine otherwise."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"norm_eps={value!r}: two floats are needed, (inside the root, added to the root)")
    inside, outside = real("norm_eps[0]", value[0]), real("norm_eps[1]", value[1])
    if inside + outside == 0:
        raise ValueError(f"norm_eps={value!r}: one of the two must be above 0, or zero patches would divide by zero")
    return inside, outside


def result_dtype(low: torch.dtype | None, x: Tensor, b, weight: Tensor | None = None) -> torch.dtype:
    """The dtype of y under autocast to ``low``, or outside of it, for any b but 1.

    A b with a dimension takes part in PyTorch's type promotion. Autocast forms powers and sums in fp32 on a GPU; on a
    CPU it leaves them in the dtype of what they are made of. ``weight`` is given where its norm is part of n.
    """
    if low is not None and x.device.type != "cpu" and x.dtype != torch.float64:
        return torch.float32
    parts = (x, weight, b if isinstance(b, Tensor) and b.dim() else None)
    return reduce(torch.promote_types, (t.dtype for t in parts if t is not None), low or x.dtype)


def exponent(b, x: Tensor) -> float | None:
    """``b`` as a number; None for a tensor, whose value is never read."""
    if isinstance(b, Tensor):
        if b.numel() != 1 or not b.is_floating_point():
            raise ValueError(f"b: a tensor must hold one floating-point value, not shape {tuple(b.shape)} of {b.dtype}")
        if b.device != x.device:
            raise ValueError(f"b is on {b.device}, x on {x.device}: both must be on one device")
        return None
    if b is True:  # which the reference takes for 1
        return 1.0
    return real("b", b, 1, needed="a float of at least 1 or a tensor")


def single_filters(max_out: int) -> None:
    """Raises ValueError unless there is one filter per output channel, as ``weight_in_norm`` needs."""
    if max_out != 1:
        raise ValueError(f"max_out={max_out}: weight_in_norm=True needs max_out=1")


def tensors(x: Tensor, weight: Tensor, bias: Tensor | None, weight_dims: int) -> None:
    """Checks the types, dtypes, layouts and devices of the tensors, and the shape of the weight."""
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        facts = described(name, t, optional=name == "bias")
        if facts is None:
            continue
        check_dense(name, facts, facts.device if x.is_meta else x.device)
        if facts.dtype != x.dtype and autocast_dtype(x.device.type) is None:
            raise TypeError(f"{name} has dtype {facts.dtype}, x has {x.dtype}: both must be equal outside of autocast")
    if weight.dim() != weight_dims or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}: {weight_dims} non-empty dimensions are needed")


def filters(weight: Tensor, bias: Tensor | None, max_out: int, groups: int = 1) -> None:
    """Checks that ``max_out`` and ``groups`` divide the filters, and that the bias has one entry per filter."""
    count = weight.shape[0]
    if count % integer("max_out", max_out, 1):
        raise ValueError(f"max_out={max_out} does not divide the weight's {count} filters")
    if (count // max_out) % groups:
        raise ValueError(f"groups={groups} does not divide the {count // max_out} output channels")
    if bias is not None and tuple(bias.shape) != (count,):
        raise ValueError(f"bias has shape {tuple(bias.shape)}: ({count},), one entry per filter, is needed")


AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""The number of a convolution's axes -> their names."""

_LETTERS = {"length": "L", "depth": "D", "height": "H", "width": "W"}


def convolution_geometry(x: Tensor, weight: Tensor, axes: int, stride, padding, dilation, groups, padding_mode: str):
    """Checks the geometry of a convolution with so many axes; returns ``(stride, pads, dilation, groups)``.

    ``pads`` holds the padding at the low and at the high end of each axis.
    """
    names = AXES[axes]
    if x.dim() not in (axes + 1, axes + 2):
        image = ", ".join(("C", *(_LETTERS[name] for name in names)))
        raise ValueError(f"x has shape {tuple(x.shape)}: (N, {image}) or ({image}) is needed")
    stride, dilation = sizes("stride", stride, 1, axes), sizes("dilation", dilation, 1, axes)
    groups = integer("groups", groups, 1)
    count, kernel = x.shape[-axes - 1], tuple(weight.shape[2:])
    if count != weight.shape[1] * groups:
        raise ValueError(
            f"x has {count} channels: weight {tuple(weight.shape)} with groups={groups} "
            f"takes {weight.shape[1] * groups}"
        )
    amounts = padding_amounts(axes, kernel, stride, padding, dilation, padding_mode)
    for name, size, d, k, amount in zip(names, x.shape[-axes:], dilation, kernel, amounts, strict=True):
        extent = d * (k - 1) + 1
        if extent > size + sum(amount):
            raise ValueError(f"the kernel spans {extent} pixels of {name}, more than the padded {size + sum(amount)}")
        if (padding_mode == "reflect" and max(amount) >= size) or (padding_mode == "circular" and max(amount) > size):
            raise ValueError(f"padding={max(amount)} is too large for padding_mode={padding_mode!r} at {name} {size}")
    return stride, tuple(p for amount in amounts for p in amount), dilation, groups


def padding_amounts(axes: int, kernel, stride, padding, dilation, padding_mode: str) -> list[tuple[int, int]]:
    """Checks how a convolution pads; returns the padding ``(low, high)`` of each axis."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed are {', '.join(map(repr, PADDING_MODES))}")
    if not isinstance(padding, str):
        return [(p, p) for p in sizes("padding", padding, 0, axes)]
    if padding not in ("same", "valid"):
        tuples = ("", "a tuple of one int", "a tuple of two ints", "a tuple of three ints")
        raise ValueError(f"padding={padding!r}: an int, {tuples[axes]}, 'same' or 'valid' is needed")
    if padding == "same" and set(stride) != {1}:
        raise ValueError(f"padding='same' needs stride 1, not {stride}")
    spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    return [(span // 2, span - span // 2) for span in spans]


def channels(in_channels, out_channels, groups) -> None:
    """Checks the channels and groups with which a convolution is made."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        integer(name, value, 1)
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value % groups:
            raise ValueError(f"groups={groups} does not divide {name}={value}")


def convolution_sizes(axes: int, kernel_size, stride, padding, dilation, padding_mode: str) -> tuple:
    """The kernel size, stride, padding and dilation as torch's convolution with so many axes takes them."""
    given = ("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)
    kernel, stride, dilation = (sizes(name, value, 1, axes) for name, value in given)
    amounts = padding_amounts(axes, kernel, stride, padding, dilation, padding_mode)
    return kernel, stride, padding if isinstance(padding, str) else tuple(low for low, _ in amounts), dilation
