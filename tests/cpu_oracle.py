"""Cases of the C++ kernels, and the formula in float64 PyTorch that they are checked against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from bcos_kernels import _C

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@dataclass(frozen=True)
class Case:
    """One call; ``size == ()`` marks the linear layer."""

    batch: int = 2
    channels: int = 6
    outputs: int = 8
    size: tuple[int, ...] = (7, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    max_out: int = 1
    b: float = 2.0
    tensor_b: bool = False
    bias: bool = False
    unit: bool = True
    eps: tuple[float, float, float] = (1e-6, 0.0, 1e-6)
    dtype: torch.dtype = F32
    weight_dtype: torch.dtype | None = None
    out_dtype: torch.dtype | None = None
    format: torch.memory_format = CONTIGUOUS
    exact_two: bool = True

    @property
    def spec(self) -> _C.TransformSpec:
        stride, padding, dilation = self.window or ((), (), ())
        return _C.TransformSpec(
            stride=stride, padding=padding, dilation=dilation, groups=self.groups, max_out=self.max_out,
            b=None if self.tensor_b else self.b, unit=self.unit, norm_eps=self.eps[:2], cos_eps=self.eps[2],
            exact_two=self.exact_two, out_dtype=self.out_dtype or self.dtype,
        )  # fmt: skip

    @property
    def saves_norm(self) -> bool:
        """A depthwise layer's norm is formed again in the backward."""
        return self.groups == 1 or self.groups < self.channels

    @property
    def window(self) -> tuple:
        return (self.stride, self.padding, self.dilation) if self.size else ()

    def inputs(self, seed: int = 0) -> dict[str, torch.Tensor | None]:
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=rng, dtype=F64)

        filters = self.outputs * self.max_out
        if self.size:
            x = normal(self.batch, self.channels, *self.size).contiguous(memory_format=self.format)
            w = normal(filters, self.channels // self.groups, *self.kernel).contiguous(memory_format=self.format)
        else:
            x, w = normal(self.batch, self.channels), normal(filters, self.channels)
        weight_dtype = self.weight_dtype or self.dtype
        return {
            "x": x.to(self.dtype),
            "weight": (w / 4).to(weight_dtype),
            "bias": (normal(filters) / 8).to(weight_dtype) if self.bias else None,
            "b": torch.tensor([self.b], dtype=F64 if self.dtype == F64 else F32) if self.tensor_b else None,
        }


def oracle(case: Case, x, weight, bias, b, frozen=False):
    """y, n of the formula in the dtype of ``x``; differentiable."""
    norm = weight.flatten(1).square().sum(1)
    alpha = torch.where(norm == 0, 0, torch.where(norm == 0, 1, norm).rsqrt()) if case.unit else torch.ones_like(norm)
    w = weight * alpha.view(-1, *[1] * (weight.dim() - 1))
    inside, outside, cos_eps = case.eps
    if case.size:
        rest = case.stride, case.padding, case.dilation
        linear = F.conv2d(x, w, bias, *rest, case.groups)
        ones = x.new_ones(1, case.channels // case.groups, *case.kernel)
        q = torch.cat([F.conv2d(part.square(), ones, None, *rest) for part in x.chunk(case.groups, 1)], 1)
    else:
        linear, q = F.linear(x, w, bias), x.square().sum(1, keepdim=True)
    linear = linear.unflatten(1, (-1, case.max_out)).max(2).values
    q = q + inside
    n = torch.where(q == 0, 0, torch.where(q == 0, 1, q).sqrt()) + outside
    if case.b == 1 and b is None:
        return linear, None
    l, wide = linear, n.repeat_interleave(linear.shape[1] // n.shape[1], 1)  # noqa: E741
    if frozen:
        l, wide = l.detach(), wide.detach()  # noqa: E741
    exponent = (case.b if b is None else b) - 1
    cos = l.abs() / torch.where(wide == 0, 1, wide) + (0 if case.b == 2 and case.exact_two else cos_eps)
    s = torch.where(
        cos == 0, torch.tensor(float(case.b == 1), dtype=cos.dtype), torch.where(cos == 0, 1, cos) ** exponent
    )
    return s * linear, n


def forward(case: Case, x, weight, bias, b):
    return _C.transform_forward(x, weight, bias, b, case.spec)


def backward(case: Case, grad, x, weight, b, outputs, frozen=False, needs=(True,) * 4):
    needs = [*needs[:2], needs[2] and case.bias, needs[3]]
    return _C.transform_backward(grad, x, weight, b, *outputs, None, None, None, case.spec, frozen, needs)


def tolerance(*dtypes) -> float:
    return max({F64: 1e-10, F32: 2e-5, BF16: 3e-2}[d] for d in dtypes)


def close(actual, expected, tol, floor=1e-30):
    """The largest error relative to the largest value, or to ``floor`` where all of it cancels."""
    actual = actual.to(F64)
    scale = expected.abs().max().clamp(min=floor) if expected.numel() else 1
    error = (actual - expected).abs().max() / scale if expected.numel() else torch.zeros(())
    assert actual.shape == expected.shape
    assert error <= tol, f"error {error:.3g} > {tol:.3g}"


def check(case: Case, frozen: bool = False, grad=None, mutate=None):
    """Forward and backward of one case; returns what the kernels gave."""
    inputs = case.inputs()
    if mutate:
        mutate(inputs)
    outputs = forward(case, **inputs)
    y, n, _, _ = outputs
    leaves = {k: None if v is None else v.to(F64).detach().requires_grad_() for k, v in inputs.items()}
    expected, expected_n = oracle(case, **leaves, frozen=frozen)
    tol = tolerance(case.dtype, case.weight_dtype or case.dtype)
    assert y.dtype == (case.out_dtype or case.dtype)
    close(y, expected.detach(), tol)
    if expected_n is not None and case.saves_norm:
        assert n.dtype == (F64 if case.dtype == F64 else F32)
        close(n, expected_n.detach(), tolerance(F64 if case.dtype == F64 else F32))
    if case.size:
        like = F.conv2d(inputs["x"], inputs["weight"].to(case.dtype), None, *case.window, case.groups)
        if case.max_out == 1:
            assert y.stride() == like.stride()
        for t in outputs[2:]:
            assert t.numel() == 0 or t.stride() == y.stride()
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype) if grad is None else grad(y)
    got = backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], outputs, frozen)
    names = [k for k, v in leaves.items() if v is not None]
    wanted = torch.autograd.grad(expected, [leaves[k] for k in names], grad.to(F64), allow_unused=True)
    wanted = dict(zip(names, wanted, strict=True))
    for name, actual in zip(("x", "weight", "bias", "b"), got, strict=True):
        source = inputs[name]
        if source is None:
            assert actual is None
            continue
        assert actual.dtype == source.dtype and actual.shape == source.shape, name
        assert bool(actual.isfinite().all()), name
        if name in ("x",) and source.numel():
            assert actual.is_contiguous(memory_format=case.format if case.size else CONTIGUOUS)
        scale = 5 if name != "b" else 20
        close(actual, torch.zeros_like(leaves[name]) if wanted[name] is None else wanted[name], scale * tol, 0.1)
    return outputs, got


LINEAR = Case(batch=5, channels=12, outputs=10, size=(), eps=(0.0, 1e-12, 1e-6))
GEOMETRIES = {
    "3x3": Case(),
    "more filters than lie on a stack": Case(outputs=300),
    "1x1": Case(kernel=(1, 1), padding=(0, 0), channels=17, outputs=33),
    "1x1 stride 2": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "1x1 tiles stride 2": Case(
        batch=3, channels=70, outputs=35, size=(15, 13), kernel=(1, 1), padding=(0, 0), stride=(2, 2)
    ),
    "stem": Case(kernel=(7, 7), padding=(3, 3), stride=(2, 2), size=(19, 17), outputs=16),
    "patches": Case(size=(40, 33), outputs=17),
    "patches of a stem": Case(kernel=(7, 7), padding=(3, 3), stride=(2, 2), size=(65, 66), outputs=16),
    "patches apart": Case(kernel=(3, 4), padding=(0, 1), stride=(3, 5), size=(140, 110), outputs=9),
    "wide strides": Case(stride=(3, 2), padding=(2, 0), kernel=(2, 4)),
    "dilated": Case(dilation=(2, 3), padding=(2, 4), size=(9, 11)),
    "padding beyond the kernel": Case(padding=(5, 4)),
    "whole input": Case(kernel=(7, 6), padding=(0, 0)),
    "gaps": Case(kernel=(1, 2), stride=(3, 3), padding=(0, 0)),
    "groups": Case(groups=2),
    "groups of 4": Case(channels=24, outputs=24, groups=6, size=(9, 7)),
    "groups of 8 strided": Case(channels=16, outputs=16, groups=2, stride=(2, 1), size=(8, 9)),
    "groups of 8 strided columns": Case(channels=16, outputs=16, groups=2, stride=(1, 2), size=(8, 9)),
    "groups of 8 dilated": Case(channels=16, outputs=16, groups=2, dilation=(2, 1), padding=(3, 1), size=(9, 8)),
    "groups of 16": Case(channels=32, outputs=64, groups=2),
    "groups of 16 to 16": Case(channels=48, outputs=48, groups=3, size=(9, 11)),
    "groups of 32 strided": Case(channels=64, outputs=64, groups=2, stride=(2, 1), size=(8, 9)),
    "groups of 32 dilated": Case(channels=64, outputs=64, groups=2, dilation=(2, 1), padding=(3, 1), size=(9, 8)),
    "groups 3 strided": Case(groups=3, channels=9, outputs=6, stride=(2, 2)),
    "depthwise": Case(channels=8, groups=8),
    "depthwise 7x7": Case(channels=20, outputs=20, groups=20, kernel=(7, 7), padding=(3, 3), size=(14, 13)),
    "depthwise 1x7": Case(channels=20, outputs=20, groups=20, kernel=(1, 7), padding=(0, 3), size=(3, 13)),
    "depthwise 5x1": Case(channels=9, outputs=9, groups=9, kernel=(5, 1), padding=(2, 0), size=(7, 3)),
    "depthwise 3x5": Case(channels=16, outputs=16, groups=16, kernel=(3, 5), padding=(1, 2), size=(4, 3)),
    "depthwise long": Case(channels=8, groups=8, kernel=(1, 5), padding=(0, 2), size=(1, 300)),
    "depthwise tall": Case(batch=1, channels=8, groups=8, size=(40, 5)),
    "depthwise strided": Case(channels=8, groups=8, stride=(2, 3), size=(9, 9)),
    "depthwise dilated": Case(channels=8, groups=8, dilation=(2, 1), padding=(2, 1)),
    "multiplier": Case(channels=4, groups=4, outputs=12),
    "one pixel": Case(size=(1, 1), kernel=(1, 1), padding=(0, 0)),
    "one channel": Case(channels=1, outputs=1, size=(5, 5)),
    "many pixels": Case(batch=1, channels=2, outputs=3, size=(40, 41)),
    "many channels": Case(batch=3, channels=70, outputs=130, size=(5, 5), kernel=(1, 1), padding=(0, 0)),
    "1x1 tiles": Case(batch=1, channels=70, outputs=35, size=(50, 43), kernel=(1, 1), padding=(0, 0)),
    "linear": LINEAR,
    "linear 17": replace(LINEAR, batch=17, channels=17, outputs=17),
    "linear 1": replace(LINEAR, batch=1, channels=1, outputs=1),
    "linear tiles": replace(LINEAR, batch=133, channels=65, outputs=259),
    "linear long": replace(LINEAR, batch=70, channels=1030, outputs=40),
    "linear tiles long": replace(LINEAR, batch=133, channels=517, outputs=70),
    "linear high": replace(LINEAR, batch=2100, channels=19, outputs=70),
}
EXACT = [
    GEOMETRIES[name]
    for name in (
        "3x3", "1x1", "1x1 tiles", "dilated", "patches of a stem", "patches apart", "groups of 4",
        "groups of 8 strided", "groups of 8 dilated", "groups of 16 to 16", "depthwise 7x7", "depthwise 1x7",
        "depthwise 5x1", "depthwise long", "linear", "linear tiles", "linear high",
    )
]  # fmt: skip
"""One for every way to form the products."""
POWERS = {
    "b1": {"b": 1.0},
    "b1.25": {"b": 1.25},
    "b1.5": {"b": 1.5},
    "b2": {"b": 2.0},
    "b2.5": {"b": 2.5},
    "b tensor": {"b": 1.75, "tensor_b": True},
    "b tensor at 2": {"b": 2.0, "tensor_b": True},
    "b tensor at 1": {"b": 1.0, "tensor_b": True},
}
FORMATS = {"nchw": CONTIGUOUS, "nhwc": CHANNELS_LAST}
