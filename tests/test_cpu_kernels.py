"""The C++ kernels against the formula in float64 PyTorch, differentiated by autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

_C = pytest.importorskip("bcos_kernels._C")

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
    def formula(self) -> tuple:
        return (self.max_out, 0.0 if self.tensor_b else self.b, self.unit, *self.eps)

    @property
    def geometry(self) -> tuple:
        return (list(self.stride), list(self.padding), list(self.dilation), self.groups) if self.size else ()

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


def oracle(case: Case, x, weight, bias, b, explain=False):
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
    if explain:
        l, wide = l.detach(), wide.detach()  # noqa: E741
    exponent = (case.b if b is None else b) - 1
    cos = l.abs() / torch.where(wide == 0, 1, wide) + (0 if case.b == 2 and case.exact_two else cos_eps)
    s = torch.where(
        cos == 0, torch.tensor(float(case.b == 1), dtype=cos.dtype), torch.where(cos == 0, 1, cos) ** exponent
    )
    return s * linear, n


def forward(case: Case, x, weight, bias, b):
    op = _C.conv2d if case.size else _C.linear
    out_dtype = case.out_dtype or case.dtype
    return op(x, weight, bias, b, *case.geometry, *case.formula, out_dtype, exact_two=case.exact_two)


def backward(case: Case, grad, x, weight, b, outputs, explain=False, needs=(True,) * 4):
    op = _C.conv2d_backward if case.size else _C.linear_backward
    rest = (*case.geometry, *case.formula, explain, list(needs))
    return op(grad, x, weight, b, *outputs, case.bias, *rest, exact_two=case.exact_two)


def tolerance(*dtypes) -> float:
    return max({F64: 1e-10, F32: 2e-5, BF16: 3e-2}[d] for d in dtypes)


def close(actual, expected, tol, floor=1e-30):
    """The largest error relative to the largest value, or to ``floor`` where all of it cancels."""
    actual = actual.to(F64)
    scale = expected.abs().max().clamp(min=floor) if expected.numel() else 1
    error = (actual - expected).abs().max() / scale if expected.numel() else torch.zeros(())
    assert actual.shape == expected.shape
    assert error <= tol, f"error {error:.3g} > {tol:.3g}"


def check(case: Case, explain: bool = False, grad=None, mutate=None):
    """Forward and backward of one case; returns what the kernels gave."""
    inputs = case.inputs()
    if mutate:
        mutate(inputs)
    outputs = forward(case, **inputs)
    y, n, _, _ = outputs
    leaves = {k: None if v is None else v.to(F64).detach().requires_grad_() for k, v in inputs.items()}
    expected, expected_n = oracle(case, **leaves, explain=explain)
    tol = tolerance(case.dtype, case.weight_dtype or case.dtype)
    assert y.dtype == (case.out_dtype or case.dtype)
    close(y, expected.detach(), tol)
    if expected_n is not None:
        assert n.dtype == (F64 if case.dtype == F64 else F32)
        close(n, expected_n.detach(), tolerance(F64 if case.dtype == F64 else F32))
    if case.size:
        like = F.conv2d(inputs["x"], inputs["weight"].to(case.dtype), None, *case.geometry[:3], case.groups)
        if case.max_out == 1:
            assert y.stride() == like.stride()
        for t in outputs[2:]:
            assert t.numel() == 0 or t.stride() == y.stride()
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype) if grad is None else grad(y)
    got = backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], outputs, explain)
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
    "1x1": Case(kernel=(1, 1), padding=(0, 0), channels=17, outputs=33),
    "1x1 stride 2": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "stem": Case(kernel=(7, 7), padding=(3, 3), stride=(2, 2), size=(19, 17), outputs=16),
    "wide strides": Case(stride=(3, 2), padding=(2, 0), kernel=(2, 4)),
    "dilated": Case(dilation=(2, 3), padding=(2, 4), size=(9, 11)),
    "padding beyond the kernel": Case(padding=(5, 4)),
    "whole input": Case(kernel=(7, 6), padding=(0, 0)),
    "gaps": Case(kernel=(1, 2), stride=(3, 3), padding=(0, 0)),
    "groups": Case(groups=2),
    "groups 3 strided": Case(groups=3, channels=9, outputs=6, stride=(2, 2)),
    "depthwise": Case(channels=8, groups=8),
    "depthwise 7x7": Case(channels=20, outputs=20, groups=20, kernel=(7, 7), padding=(3, 3), size=(14, 13)),
    "depthwise strided": Case(channels=8, groups=8, stride=(2, 3), size=(9, 9)),
    "depthwise dilated": Case(channels=8, groups=8, dilation=(2, 1), padding=(2, 1)),
    "multiplier": Case(channels=4, groups=4, outputs=12),
    "one pixel": Case(size=(1, 1), kernel=(1, 1), padding=(0, 0)),
    "one channel": Case(channels=1, outputs=1, size=(5, 5)),
    "many pixels": Case(batch=1, channels=2, outputs=3, size=(40, 41)),
    "many channels": Case(batch=3, channels=70, outputs=130, size=(5, 5), kernel=(1, 1), padding=(0, 0)),
    "linear": LINEAR,
    "linear 17": replace(LINEAR, batch=17, channels=17, outputs=17),
    "linear 1": replace(LINEAR, batch=1, channels=1, outputs=1),
    "linear tiles": replace(LINEAR, batch=133, channels=65, outputs=259),
    "linear long": replace(LINEAR, batch=70, channels=1030, outputs=40),
}
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


@pytest.mark.parametrize("explain", [False, True], ids=["train", "explain"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(name, layout, explain):
    for b in (1.0, 2.0, 1.5):
        for dtype in (F32, F64):
            check(replace(GEOMETRIES[name], format=FORMATS[layout], b=b, dtype=dtype), explain)


@pytest.mark.parametrize("explain", [False, True], ids=["train", "explain"])
@pytest.mark.parametrize("options", [{}, {"max_out": 2}, {"max_out": 3, "bias": True}, {"bias": True, "unit": False}])
@pytest.mark.parametrize("power", POWERS)
def test_formula(power, options, explain):
    for base in (LINEAR, Case(), Case(groups=2), Case(channels=8, groups=8)):
        for layout in FORMATS.values():
            for dtype in (F32, F64):
                check(replace(base, format=layout, dtype=dtype, **POWERS[power], **options), explain)


@pytest.mark.parametrize("weight_dtype", [BF16, F32])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
@pytest.mark.parametrize("power", ["b1", "b1.5", "b2", "b tensor"])
def test_bfloat16(power, weight_dtype, out_dtype):
    for base in (LINEAR, Case(), Case(channels=8, groups=8), Case(groups=2, max_out=2, bias=True)):
        for layout in FORMATS.values():
            case = replace(base, format=layout, dtype=BF16, weight_dtype=weight_dtype, out_dtype=out_dtype)
            check(replace(case, **POWERS[power]))


def test_cosine_epsilon_kept_at_two():
    case = replace(LINEAR, exact_two=False, eps=(1e-6, 0.0, 0.1), dtype=F64)
    y = check(case)[0][0]
    assert not torch.equal(y, check(replace(case, exact_two=True))[0][0])


GRADS = {
    "expanded": lambda y: torch.full((), 0.5, dtype=y.dtype).expand(y.shape),
    "broadcast rows": lambda y: torch.randn(y.shape[1:], dtype=y.dtype).expand(y.shape),
    "sliced": lambda y: torch.randn(2 * y.shape[0], *y.shape[1:], dtype=y.dtype)[::2],
    "transposed": lambda y: torch.randn(*y.shape[::-1], dtype=y.dtype).permute(*range(y.dim() - 1, -1, -1)),
    "part of a cat": lambda y: torch.randn(y.shape[0], 3 * y.shape[1], *y.shape[2:], dtype=y.dtype).chunk(3, 1)[1],
}


@pytest.mark.parametrize("grad", GRADS)
def test_strides_of_the_gradient(grad):
    for base in (LINEAR, Case(), Case(channels=8, groups=8), Case(kernel=(1, 1), padding=(0, 0))):
        for layout in FORMATS.values():
            for b in (1.0, 2.0, 2.5):
                check(replace(base, format=layout, b=b, dtype=F64), grad=GRADS[grad])


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("x_format", FORMATS)
def test_mixed_memory_formats(x_format, weight_format):
    for case in (Case(dtype=F64), Case(channels=8, groups=4), Case(channels=8, groups=8, b=1.5)):
        inputs = case.inputs()
        inputs["x"] = inputs["x"].contiguous(memory_format=FORMATS[x_format])
        inputs["weight"] = inputs["weight"].contiguous(memory_format=FORMATS[weight_format])
        outputs = forward(case, **inputs)
        y = outputs[0]
        plain = F.conv2d(inputs["x"], inputs["weight"], None, *case.geometry[:3], case.groups)
        assert y.stride() == plain.stride()
        reference = forward(case, **case.inputs())
        close(y, reference[0].to(F64), tolerance(case.dtype))
        close(outputs[1], reference[1].to(F64), tolerance(case.dtype))
        grad = torch.randn(y.shape, dtype=y.dtype)
        dx, dw, *_ = backward(case, grad, inputs["x"], inputs["weight"], None, outputs)
        assert dx.is_contiguous(memory_format=FORMATS[x_format])
        assert dw.is_contiguous(memory_format=FORMATS[weight_format])
        wanted = backward(case, grad, *list(case.inputs().values())[:2], None, reference)
        close(dx, wanted[0].to(F64), 5 * tolerance(case.dtype))
        close(dw, wanted[1].to(F64), 5 * tolerance(case.dtype))


def test_strides_of_the_input():
    case = Case(dtype=F64)
    inputs = case.inputs()
    expected = forward(case, **inputs)[0]
    x, weight = inputs["x"], inputs["weight"]
    wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=F64)
    wide[..., ::2] = x
    views = [wide[..., ::2], x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)]
    for view in views:
        assert torch.equal(forward(case, view, weight, None, None)[0], expected)
    assert torch.equal(
        forward(case, x, weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), None, None)[0], expected
    )


@pytest.mark.parametrize("b", [1.0, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("eps", [(1e-6, 0.0, 1e-6), (0.0, 1e-12, 1e-6), (0.0, 1e-12, 0.0), (0.0, 0.0, 0.0)])
def test_zero_rows_and_filters(b, eps):
    def zeros(inputs):
        inputs["x"][0] = 0
        inputs["weight"][1] = 0

    for base in (LINEAR, Case(), Case(channels=8, groups=8), Case(max_out=2)):
        for layout in FORMATS.values():
            for tensor_b in (False, True):
                case = replace(base, b=b, eps=eps, format=layout, dtype=F64, tensor_b=tensor_b)
                (y, *_), (_, dw, *_) = check(case, mutate=zeros)
                assert bool((y[0] == 0).all()) and bool((dw[1] == 0).all())
    for base in (LINEAR, Case()):
        case = replace(base, b=b, eps=eps, dtype=BF16)
        inputs = case.inputs()
        zeros(inputs)
        outputs = forward(case, **inputs)
        got = backward(case, torch.ones_like(outputs[0]), inputs["x"], inputs["weight"], None, outputs)
        assert all(bool(t.isfinite().all()) for t in (outputs[0], *got[:2]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("max_out", [1, 2, 3])
def test_not_finite_values_pass(value, max_out):
    for b in (1.0, 1.5, 2.0):
        for base in (LINEAR, Case(), Case(channels=8, groups=8)):
            for layout in FORMATS.values():
                case = replace(base, b=b, max_out=max_out, format=layout)
                inputs = case.inputs()
                inputs["x"][0].select(0, 2).fill_(value)
                y = forward(case, **inputs)[0]
                expected = oracle(case, *(None if v is None else v.to(F64) for v in inputs.values()))[0]
                assert torch.equal(y.isnan(), expected.isnan())
                assert torch.equal(y.isinf(), expected.isinf())


def test_winner_is_the_index_of_torch_max():
    for base in (LINEAR, Case(), Case(groups=2)):
        for layout in FORMATS.values():
            case = replace(base, max_out=4, format=layout, b=1.0, unit=False)
            inputs = case.inputs()
            inputs["x"] = inputs["x"].sign()
            inputs["weight"] = inputs["weight"].sign()  # integers: many ties
            plain = replace(case, max_out=1, outputs=case.outputs * 4)
            members = forward(plain, **inputs)[0].unflatten(1, (-1, 4))
            values, _ = members.max(2)
            y, _, _, winner = forward(case, **inputs)
            first = (members == values.unsqueeze(2)).to(torch.uint8).argmax(2)
            assert torch.equal(y, values)
            assert torch.equal(winner.long(), first)


def test_integers_are_exact():
    """Small integers make every sum exact: the linear output, the sum of squares, dgrad and wgrad must be equal."""
    for base in (LINEAR, *(GEOMETRIES[k] for k in ("3x3", "1x1", "dilated", "depthwise 7x7", "linear tiles"))):
        for layout in FORMATS.values():
            case = replace(base, b=1.0, unit=False, format=layout, eps=(0.0, 0.0, 0.0))
            inputs = {k: None if v is None else (4 * v).round().clamp(-8, 8) for k, v in case.inputs().items()}
            wide = {k: None if v is None else v.to(F64).requires_grad_() for k, v in inputs.items()}
            expected = oracle(case, **wide)[0]
            outputs = forward(case, **inputs)
            assert torch.equal(outputs[0].to(F64), expected)
            grad = torch.randint(-4, 5, expected.shape).float()
            dx, dw, *_ = backward(case, grad, inputs["x"], inputs["weight"], None, outputs)
            wanted = torch.autograd.grad(expected, [wide["x"], wide["weight"]], grad.to(F64))
            assert torch.equal(dx.to(F64), wanted[0]) and torch.equal(dw.to(F64), wanted[1])
            n = forward(replace(case, b=2.0), **inputs)[1]
            squares = oracle(replace(case, b=2.0), **wide)[1].square().round()
            assert torch.equal(n.double().square().round(), squares)


@pytest.mark.parametrize(
    "needs", [(True, False, False, False), (False, True, False, False), (False, False, True, True)]
)
def test_only_what_is_needed(needs):
    for base in (LINEAR, Case()):
        case = replace(base, b=1.5, tensor_b=True, bias=True)
        inputs = case.inputs()
        outputs = forward(case, **inputs)
        grad = torch.randn(outputs[0].shape)
        every = backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], outputs)
        some = backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], outputs, needs=needs)
        for wanted, full, part in zip(needs, every, some, strict=True):
            assert (part is not None) == wanted
            if wanted:
                torch.testing.assert_close(part, full, rtol=1e-6, atol=1e-6)


def test_empty_batch():
    for base in (LINEAR, Case(), Case(channels=8, groups=8), Case(kernel=(1, 1), padding=(0, 0))):
        for options in ({}, {"b": 1.0}, {"b": 1.5, "bias": True, "max_out": 2}, {"b": 1.5, "tensor_b": True}):
            for layout in FORMATS.values():
                check(replace(base, batch=0, format=layout, **options))


def test_which_tensors_are_saved():
    for base in (LINEAR, Case()):
        for options, present in (
            ({"b": 1.0}, (False, False, False)),
            ({"b": 2.0}, (True, False, False)),
            ({"b": 1.5}, (True, True, False)),
            ({"b": 2.0, "tensor_b": True, "max_out": 2}, (True, True, True)),
        ):
            case = replace(base, **options)
            assert tuple(t.numel() > 0 for t in forward(case, **case.inputs())[1:]) == present


def test_every_output_is_written():
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        for case in (LINEAR, *GEOMETRIES.values()):
            for layout in FORMATS.values():
                for options in ({}, {"b": 1.5, "bias": True, "max_out": 2}):
                    check(replace(case, format=layout, **options))
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_every_time():
    for base in (replace(LINEAR, batch=200, channels=96, outputs=130), Case(batch=4, channels=32, size=(17, 17))):
        case = replace(base, b=1.5, bias=True, tensor_b=True, format=CHANNELS_LAST)
        inputs = case.inputs()
        outputs = forward(case, **inputs)
        grad = torch.randn(outputs[0].shape)
        first = (*outputs, *backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], outputs))
        for _ in range(20):
            again = forward(case, **inputs)
            again = (*again, *backward(case, grad, inputs["x"], inputs["weight"], inputs["b"], again))
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_norms():
    x = torch.randn(2, 6, 7, 8, dtype=F64)
    for layout in FORMATS.values():
        for groups in (1, 2, 6):
            n = _C.patch_norm(x.contiguous(memory_format=layout), [3, 2], [2, 1], [1, 0], [1, 2], groups, 0.5, 0.25)
            squares = x.square().unflatten(1, (groups, -1)).sum(2)
            window = torch.ones(groups, 1, 3, 2, dtype=F64)
            squares = F.conv2d(squares, window, None, (2, 1), (1, 0), (1, 2), groups)
            torch.testing.assert_close(n, (squares + 0.5).sqrt() + 0.25)
    for w in (torch.randn(5, 4, 3, 3), torch.randn(5, 17).bfloat16(), torch.randn(3, dtype=F64)):
        n = _C.weight_norm(w)
        wanted = w.double().flatten(1).norm(dim=1) if w.dim() > 1 else w.abs()
        torch.testing.assert_close(n, wanted.to(n.dtype))


def test_linear_far_rows_do_not_mix():
    """Rows scaled by 1e4 and 1e-4 beside each other keep their own accuracy (b = 2 is homogeneous)."""
    case = replace(LINEAR, batch=70, channels=64, outputs=48, eps=(0.0, 0.0, 0.0))
    inputs = case.inputs()
    factor = torch.tensor([1e4, 1.0, 1e-4]).repeat(24)[:70, None]
    y = forward(case, **inputs)[0]
    inputs["x"] = inputs["x"] * factor
    torch.testing.assert_close(forward(case, **inputs)[0] / factor, y, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("b", [1.01, 1.25, 1.5, 2.5, 3.0, 7.0])
def test_power_is_as_exact_as_that_of_torch(b):
    """One input of 1 and no epsilon make y = |w|^(b-1) w: the power's own error shows, over all magnitudes."""
    w = torch.cat([torch.logspace(-30, 30, 20001, dtype=F64).float(), torch.linspace(0.01, 1.5, 20001)])
    y = _C.linear(torch.ones(1, 1), w[:, None], None, None, 1, b, False, 0.0, 0.0, 0.0, F32)[0][0]
    exact, of_torch = w.to(F64) ** b, w.pow(b - 1) * w
    normal = (exact > 1.2e-38) & (exact < 3.4e38)

    def error(v):
        return ((v.to(F64) - exact) / exact)[normal].abs().max()

    assert error(y) <= 1.1 * error(of_torch) + 2**-24
    assert bool((y[exact > 4e38] == float("inf")).all())


BAD = {
    "rank": lambda a: a.update(x=a["x"][0]),
    "channels": lambda a: a.update(x=a["x"][:, :-1]),
    "integer x": lambda a: a.update(x=a["x"].long()),
    "complex x": lambda a: a.update(x=a["x"].to(torch.complex64)),
    "half x": lambda a: a.update(x=a["x"].half()),
    "meta x": lambda a: a.update(x=a["x"].to("meta")),
    "sparse x": lambda a: a.update(x=a["x"].to_sparse()),
    "double weight": lambda a: a.update(weight=a["weight"].double()),
    "empty weight": lambda a: a.update(weight=a["weight"][:0]),
    "bias length": lambda a: a.update(bias=torch.zeros(3)),
    "bias dtype": lambda a: a.update(bias=torch.zeros(8, dtype=torch.long)),
    "b elements": lambda a: a.update(b=torch.ones(2)),
    "b integer": lambda a: a.update(b=torch.ones((), dtype=torch.long)),
    "groups": lambda a: a.update(groups=4),
    "no groups": lambda a: a.update(groups=0),
    "stride": lambda a: a.update(stride=[0, 1]),
    "stride length": lambda a: a.update(stride=[1]),
    "padding": lambda a: a.update(padding=[-1, 0]),
    "huge dilation": lambda a: a.update(dilation=[2**62, 1]),
    "kernel beyond the input": lambda a: a.update(dilation=[9, 9]),
    "max_out": lambda a: a.update(max_out=3),
    "max_out 0": lambda a: a.update(max_out=0),
    "max_out 256": lambda a: a.update(max_out=256),
    "b below 1": lambda a: a.update(exponent=0.5),
    "b NaN": lambda a: a.update(exponent=float("nan")),
    "epsilon": lambda a: a.update(eps_inside=-1.0),
    "out_dtype": lambda a: a.update(out_dtype=F64),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_of_conv2d(name):
    case = Case()
    arguments = dict(case.inputs(), stride=[1, 1], padding=[1, 1], dilation=[1, 1], groups=1, max_out=1, exponent=2.0)
    arguments.update(unit=True, eps_inside=1e-6, eps_outside=0.0, cos_eps=1e-6, out_dtype=F32)
    _C.conv2d(**arguments)
    BAD[name](arguments)
    with pytest.raises((ValueError, TypeError), match="allowed"):
        _C.conv2d(**arguments)


@pytest.mark.parametrize("index", range(8))
def test_bad_saved_tensors(index):
    for base in (LINEAR, Case()):
        case = replace(base, max_out=2, b=1.5)
        inputs = case.inputs()
        outputs = list(forward(case, **inputs))
        grad = torch.randn(outputs[0].shape)
        arguments = [grad, inputs["x"], inputs["weight"], None, *outputs]
        if index == 3:
            arguments[3] = torch.ones(3)
        elif arguments[index].dim() == 1:
            continue
        else:
            arguments[index] = arguments[index][:, :-1]
        with pytest.raises((ValueError, TypeError), match="allowed"):
            backward(case, *arguments[:4], arguments[4:])


def test_build_info():
    info = _C.build_info()
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(info) == {"torch", "compiler", "isa_clones", "openmp", "cuda"}
