"""The one table of cases: layers × options, the naive eager formula, and the error budget against float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bcos_kernels as bk
from bcos_kernels.adopt.measure import one_thread
from bcos_kernels.compat import import_reference
from bcos_kernels.core import formats
from bcos_kernels.transform import TRANSFORM

bcos = import_reference()


@dataclass(frozen=True)
class Case:
    """One layer: shapes, and keyword arguments of ``bk.functional``."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict = field(default_factory=dict)
    bias: bool = False

    @property
    def is_linear(self) -> bool:
        return len(self.weight) == 2

    def inputs(self, dtype: torch.dtype, seed: int = 0, channels_last: bool = False):
        """Random ``(x, weight, bias | None)``, each requiring its gradient."""
        gen = torch.Generator().manual_seed(seed)
        x = torch.randn(self.x, generator=gen, dtype=torch.float64).to(dtype)
        weight = torch.randn(self.weight, generator=gen, dtype=torch.float64).to(dtype)
        bias = torch.randn(self.weight[0], generator=gen, dtype=torch.float64).to(dtype) if self.bias else None
        if channels_last:
            x = formats.channels_last(x)
        return tuple(None if t is None else t.requires_grad_() for t in (x, weight, bias))

    def __call__(self, x, weight, bias=None, **more) -> Tensor:
        return LAYERS[len(self.weight)](x, weight, bias, **{**self.options, **more})

    def naive(self, x, weight, bias=None, **more) -> Tensor:
        return naive(x, weight, bias, **{**self.options, **more})


LAYERS = {
    2: bk.functional.bcos_linear, 3: bk.functional.bcos_conv1d, 4: bk.functional.bcos_conv2d,
    5: bk.functional.bcos_conv3d,
}  # fmt: skip
"""The dimensions of a weight -> the function that takes it."""


def naive(
    x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", b=2.0, max_out=1,
    normalize_weights=True, weight_in_norm=False, norm_eps=None, cos_eps=1e-6, exact_two=True, detach=False,
) -> Tensor:  # fmt: skip
    """The eager formula, step by step in x's dtype as the published layers compute it; no care for zeros."""
    linear_layer = weight.dim() == 2
    inside, outside = norm_eps or ((0.0, 1e-12) if linear_layer else (1e-6, 0.0))
    length = weight.flatten(1).norm(dim=1)
    column = (-1, *[1] * (weight.dim() - 1))
    w = weight / length.view(column) if normalize_weights else weight
    channel = -1 if linear_layer else 1
    if linear_layer:
        out = F.linear(x, w, bias)
        squares = (x**2).sum(-1, keepdim=True)
    else:
        axes = weight.dim() - 2
        convolution = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        padded, amount = x, padding
        if padding_mode != "zeros":
            padded, amount = F.pad(x, (padding,) * (2 * axes), mode=padding_mode), 0
        out = convolution(padded, w, bias, stride, amount, dilation, groups)
        ones = torch.ones_like(weight[: weight.shape[0] // max_out])
        squares = convolution(x**2, ones, None, stride, padding, dilation, groups)
    if max_out > 1:
        out = out.unflatten(channel, (-1, max_out)).max(channel if linear_layer else 2).values
    if not isinstance(b, Tensor) and b == 1:
        return out
    norm = ((squares + inside).sqrt() if inside else squares.sqrt()) + outside
    if weight_in_norm:
        norm = norm * length.view(column[:-1])
    cos = (out.detach() / norm.detach() if detach is True else out / norm).abs()
    s = cos if b == 2 and exact_two else (cos + cos_eps).pow(b - 1)
    return s * out


def upstream(case: Case, dtype: torch.dtype):
    """The ``bcos`` module of the case in ``dtype``, or None where ``bcos`` has no such layer."""
    options = dict(case.options)
    known = {"stride", "padding", "groups", "b", "max_out", "padding_mode", "detach"}
    if case.bias or len(case.weight) not in (2, 4) or len(case.x) != len(case.weight) or not set(options) <= known:
        return None
    detach = options.pop("detach", False)
    if isinstance(options.get("padding", 0), str) or isinstance(options.get("b"), Tensor):
        return None
    outputs = case.weight[0] // options.get("max_out", 1)
    if case.is_linear:
        module = bcos.modules.BcosLinear(case.weight[1], outputs, dtype=dtype, **options)
    else:
        kernel, padding = case.weight[2:], options.get("padding", 0)
        if 2 * max(padding if isinstance(padding, tuple) else (padding,)) > min(kernel):
            return None
        channels = case.weight[1] * options.get("groups", 1)
        module = bcos.modules.BcosConv2d(channels, outputs, tuple(kernel), dtype=dtype, **options)
        if options.get("groups", 1) > 1 and options.get("max_out", 1) > 1 and outputs % options["groups"]:
            return None
    module.set_explanation_mode(detach)
    return module


@one_thread()
def their_result(case: Case, dtype: torch.dtype, inputs, grad):
    """``bcos``'s own output and gradients in ``dtype`` (the naive formula where ``bcos`` has no such layer)."""
    x, weight, bias = (None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs)
    module = upstream(case, dtype)
    if module is None:
        y = case.naive(x, weight, bias)
    else:
        with torch.no_grad():
            module.linear.weight.copy_(weight)
        weight = module.linear.weight
        y = module(x)
    wanted = [t for t in (x, weight, bias) if t is not None]
    return y, torch.autograd.grad(y, wanted, grad.to(y.dtype))


def error(value: Tensor, truth: Tensor, floor: float = 1e-3) -> float:
    """Error in the 2-norm relative to the truth's, or to ``floor`` an entry where the truth is (nearly) zero."""
    if value.shape != truth.shape:
        return float("inf")
    scale = max(truth.double().norm().item(), floor * truth.numel() ** 0.5)
    found = (value.double() - truth.double()).norm().item() / scale if truth.numel() else 0.0
    return found if found == found else float("inf")


class Budget:
    """Error at most 1.1 × the reference's own in the same dtype + 1 ulp of the output dtype, in the median over seeds.

    In half precision it is half a ulp: a whole one is more than the error of most results.
    In float64 the reference is the truth itself: there both runs' own rounding, 1e-14, is all that may differ.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, float, torch.dtype]]] = {}

    def add(self, what: str, ours: Tensor, theirs: Tensor, truth: Tensor, dtype: torch.dtype | None = None) -> None:
        # the gradient of a filter of one entry is 0 by cancellation of terms of size 1
        floor = 1.0 if what == "dw" and truth[0].numel() == 1 else 1e-3
        row = (error(ours, truth, floor), error(theirs, truth, floor), dtype or ours.dtype)
        self.rows.setdefault(what, []).append(row)

    def check(self) -> None:
        for what, rows in self.rows.items():
            found, theirs = (median(column) for column in zip(*(row[:2] for row in rows), strict=True))
            dtype = rows[0][2]
            ulp = torch.finfo(dtype).eps
            rest = 1e-14 if dtype == torch.float64 else ulp if dtype == torch.float32 else ulp / 2
            budget = 1.1 * theirs + rest
            assert found <= budget, f"{what}: error {found:.3g} against float64, budget {budget:.3g}"


MANY = 63


def enough(usual: int, case: Case, dtype: torch.dtype) -> int:
    """How many inputs a comparison with the reference's error needs, at least ``usual``.

    A maximum that rounding turns to another filter changes a gradient more than all other rounding does. In bfloat16 a
    few of a case's maxima turn, of the reference's as of ours, and how many is chance: the median error of nine inputs
    is often smaller where the rounding is coarser, that of ``MANY`` is not.
    """
    return max(usual, MANY) if dtype == torch.bfloat16 and case.options.get("max_out", 1) > 1 else usual


def _conv(name, x, weight, bias=False, **options):
    return Case(name, x, weight, options, bias)


CASES = [
    _conv("conv3x3", (2, 6, 9, 8), (5, 6, 3, 3), padding=1),
    _conv("conv1x1", (2, 16, 7, 5), (17, 16, 1, 1)),
    _conv("conv1x1_stride2", (2, 8, 7, 5), (4, 8, 1, 1), stride=2),
    _conv("stem7x7", (2, 6, 20, 20), (8, 6, 7, 7), stride=2, padding=3),
    _conv("b1", (2, 4, 6, 6), (8, 4, 3, 3), padding=1, b=1),
    _conv("b1.25", (2, 4, 6, 6), (8, 4, 3, 3), padding=1, b=1.25),
    _conv("b1.5", (2, 4, 6, 6), (8, 4, 3, 3), padding=1, b=1.5),
    _conv("b2.5", (2, 4, 6, 6), (8, 4, 3, 3), padding=1, b=2.5),
    _conv("b3", (2, 4, 6, 6), (8, 4, 3, 3), padding=1, b=3),
    _conv("asymmetric", (2, 4, 9, 11), (6, 4, 3, 5), stride=(2, 1), padding=(1, 2)),
    _conv("dilated", (2, 4, 11, 11), (6, 4, 3, 3), dilation=2, padding=2),
    _conv("dilation_tuple", (2, 4, 11, 9), (6, 4, 3, 2), dilation=(2, 3), padding=(1, 3)),
    _conv("wide_padding", (1, 4, 5, 5), (6, 4, 3, 3), padding=4),
    _conv("grouped", (2, 8, 7, 7), (12, 2, 3, 3), padding=1, groups=4),
    _conv("grouped_b1.5", (2, 8, 7, 7), (12, 2, 3, 3), padding=1, groups=4, b=1.5),
    _conv("depthwise", (2, 20, 9, 9), (20, 1, 7, 7), padding=3, groups=20),
    _conv("depthwise_multiplier", (2, 5, 9, 9), (10, 1, 3, 3), padding=1, groups=5),
    _conv("max_out", (2, 6, 7, 7), (12, 6, 3, 3), padding=1, max_out=3),
    _conv("max_out_b1", (2, 6, 7, 7), (12, 6, 3, 3), padding=1, max_out=3, b=1),
    _conv("max_out_b1.5_groups", (2, 6, 7, 7), (12, 3, 3, 3), padding=1, max_out=2, b=1.5, groups=2),
    _conv("bias_raw", (2, 6, 7, 7), (8, 6, 3, 3), True, padding=1, normalize_weights=False),
    _conv("bias_raw_b1.25", (2, 6, 7, 7), (8, 6, 3, 3), True, padding=1, normalize_weights=False, b=1.25),
    _conv("bias_unit_max_out", (2, 6, 7, 7), (8, 6, 3, 3), True, padding=1, max_out=2),
    _conv("weight_in_norm", (2, 6, 7, 7), (8, 6, 3, 3), padding=1, normalize_weights=False, weight_in_norm=True),
    _conv("weight_in_norm_b1.5", (2, 6, 7, 7), (8, 6, 3, 3), normalize_weights=False, weight_in_norm=True, b=1.5),
    _conv("reflect", (2, 4, 7, 7), (6, 4, 3, 3), padding=1, padding_mode="reflect"),
    _conv("replicate_b1.5", (2, 4, 7, 7), (6, 4, 3, 3), padding=1, padding_mode="replicate", b=1.5),
    _conv("circular", (2, 4, 7, 7), (6, 4, 5, 5), padding=2, padding_mode="circular"),
    _conv("reflect_max_out", (2, 4, 6, 6), (6, 4, 3, 3), padding=1, padding_mode="reflect", max_out=2),
    _conv("circular_depthwise", (2, 8, 7, 7), (8, 1, 3, 3), padding=1, padding_mode="circular", groups=8),
    _conv("circular_1x1", (2, 6, 5, 4), (5, 6, 1, 1), padding=1, padding_mode="circular"),
    _conv("explain_replicate", (2, 6, 6, 5), (5, 6, 3, 3), padding=1, padding_mode="replicate", detach=True),
    _conv("conv1d", (2, 6, 19), (5, 6, 3), padding=1),
    _conv("conv1d_b1.5", (2, 6, 19), (8, 3, 5), padding=2, stride=2, groups=2, b=1.5),
    _conv("conv1d_dilated", (2, 6, 19), (6, 6, 3), True, dilation=3, max_out=2),
    _conv("conv1d_reflect", (2, 4, 11), (6, 4, 3), padding=2, padding_mode="reflect"),
    _conv("conv1d_depthwise", (2, 12, 17), (12, 1, 3), padding=1, groups=12),
    _conv("conv3d", (2, 6, 4, 5, 6), (5, 6, 3, 3, 3), padding=1),
    _conv("conv3d_1x1", (2, 16, 3, 4, 5), (9, 16, 1, 1, 1)),
    _conv("conv3d_b1.5", (2, 4, 7, 6, 5), (6, 4, 3, 2, 1), stride=(2, 1, 2), padding=(1, 0, 1), b=1.5),
    _conv("conv3d_dilated", (1, 4, 9, 7, 7), (6, 4, 2, 3, 3), dilation=(3, 2, 1), max_out=2),
    _conv("conv3d_grouped", (2, 8, 4, 5, 5), (12, 2, 3, 3, 3), True, padding=1, groups=4),
    _conv("conv3d_depthwise", (2, 10, 4, 5, 5), (10, 1, 3, 3, 3), padding=1, groups=10),
    _conv("conv3d_circular", (2, 4, 4, 5, 5), (6, 4, 3, 3, 3), padding=1, padding_mode="circular"),
    _conv("conv3d_raw", (2, 4, 4, 5, 5), (6, 4, 3, 3, 3), normalize_weights=False, weight_in_norm=True),
    _conv("explain_conv3d", (2, 6, 4, 5, 5), (6, 6, 3, 3, 3), padding=1, detach=True),
    _conv("explain", (2, 6, 9, 8), (5, 6, 3, 3), padding=1, detach=True),
    _conv("explain_b1.5", (2, 6, 9, 8), (5, 6, 3, 3), padding=1, detach=True, b=1.5),
    _conv("explain_max_out", (2, 6, 9, 8), (6, 6, 3, 3), padding=1, detach=True, max_out=2),
    _conv("explain_depthwise", (2, 20, 9, 9), (20, 1, 7, 7), padding=3, groups=20, detach=True),
    _conv("explain_grouped_bias", (2, 8, 7, 7), (12, 2, 3, 3), True, padding=1, groups=4, detach=True),
    *(_conv(f"size{n}", (n, n, n, n), (n, n, 1, 1)) for n in (1, 2, 5, 17)),
    *(_conv(f"channels{n}", (1, n, 5, 6), (n, n, 3, 3), padding=1) for n in (15, 16, 17, 31, 33, 64, 65)),
    _conv("wide_1x1", (1, 300, 4, 4), (270, 300, 1, 1)),
    _conv("rows_of_one", (3, 7, 1, 13), (9, 7, 1, 3), padding=(0, 1)),
    Case("linear", (11, 24), (17, 24)),
    Case("linear_b1", (11, 24), (17, 24), {"b": 1}),
    Case("linear_b1.5", (11, 24), (17, 24), {"b": 1.5}),
    Case("linear_b2.5", (11, 24), (17, 24), {"b": 2.5}),
    Case("linear_max_out", (99, 24), (18, 24), {"max_out": 3}),
    Case("linear_bias_raw", (11, 24), (17, 24), {"normalize_weights": False}, True),
    Case("linear_late_norm", (11, 24), (17, 24), {"norm_eps": (1e-6, 0.0), "cos_eps": 0.0, "b": 1.5}),
    Case("linear_quirk", (11, 24), (17, 24), {"norm_eps": (1e-6, 0.0), "weight_in_norm": True, "b": 1.5}),
    Case("linear_3d", (2, 5, 24), (17, 24)),
    Case("linear_5d", (2, 1, 3, 2, 24), (17, 24), {"b": 1.25}),
    Case("linear_1d", (24,), (17, 24)),
    Case("linear_explain", (11, 24), (17, 24), {"detach": True}),
    Case("linear_explain_b2.5", (11, 24), (17, 24), {"detach": True, "b": 2.5}),
    *(Case(f"linear{n}", (n, n), (n, n)) for n in (1, 2, 5, 63, 64, 65)),
    Case("linear_wide", (70, 384), (270, 384)),
]

BACKENDS = ("cpu", "reference")


def thinned(values, kept):
    """Parameters of a test of which ``make check`` runs those alone for which ``kept(value)`` is true."""
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*v, marks=() if kept(*v) else pytest.mark.slow) for v in values]


CANDIDATES = tuple(
    dict.fromkeys(c.name for c in TRANSFORM.candidates_of("cuda,triton") if not c.name.startswith("tma"))
)
"""Those that serve layers of every kind; ``tests/gpu_kernels/test_kernels_tma.py`` has the cases of the others."""
IDS = {case.name: case for case in CASES}
assert len(IDS) == len(CASES)
