"""The C++ kernels against the formula in float64 PyTorch, differentiated by autograd."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cpu_oracle import (
    _C,
    BF16,
    CHANNELS_LAST,
    EXACT,
    F32,
    F64,
    FORMATS,
    GEOMETRIES,
    LINEAR,
    POWERS,
    Case,
    backward,
    check,
    close,
    forward,
    oracle,
    tolerance,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("several_threads")


@pytest.mark.parametrize("frozen", [False, True], ids=["train", "frozen"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry(name, layout, frozen):
    for b in (1.0, 2.0, 1.5):
        for dtype in (F32, F64):
            check(replace(GEOMETRIES[name], format=FORMATS[layout], b=b, dtype=dtype), frozen)


@pytest.mark.parametrize("frozen", [False, True], ids=["train", "frozen"])
@pytest.mark.parametrize("options", [{}, {"max_out": 2}, {"max_out": 3, "bias": True}, {"bias": True, "unit": False}])
@pytest.mark.parametrize("power", POWERS)
def test_formula(power, options, frozen):
    for base in (LINEAR, Case(), Case(groups=2), Case(channels=8, groups=8)):
        for layout in FORMATS.values():
            for dtype in (F32, F64):
                check(replace(base, format=layout, dtype=dtype, **POWERS[power], **options), frozen)


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
        plain = F.conv2d(inputs["x"], inputs["weight"], None, *case.window, case.groups)
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
    for base in EXACT:
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
            if not case.saves_norm:
                continue
            n, wanted = forward(replace(case, b=2.0), **inputs)[1], oracle(replace(case, b=2.0), **wide)[1]
            assert torch.equal(n.double().square().round(), wanted.square().round())


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
    wide, high = replace(LINEAR, batch=200, channels=96, outputs=130), replace(LINEAR, batch=2100)
    for base in (wide, high, Case(batch=4, channels=32, size=(17, 17))):
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
            window = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": groups}
            case = Case(**window, eps=(0.5, 0.25, 0.0), unit=False, dtype=F64)
            weight = torch.randn(groups, 6 // groups, 3, 2, dtype=F64)
            y = forward(case, x.contiguous(memory_format=layout), weight, None, None)[0]
            n = (F.conv2d(x.square(), torch.ones_like(weight), **window) + 0.5).sqrt() + 0.25
            linear = F.conv2d(x, weight, **window)
            torch.testing.assert_close(y, linear.abs() * linear / n)


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
    case = replace(LINEAR, b=b, unit=False, eps=(0.0, 0.0, 0.0))
    y = forward(case, torch.ones(1, 1), w[:, None], None, None)[0][0]
    exact, of_torch = w.to(F64) ** b, w.pow(b - 1) * w
    normal = (exact > 1.2e-38) & (exact < 3.4e38)

    def error(v):
        return ((v.to(F64) - exact) / exact)[normal].abs().max()

    assert error(y) <= 1.1 * error(of_torch) + 2**-24
    assert bool((y[exact > 4e38] == float("inf")).all())


BAD_TENSORS = {
    "rank": lambda a: a.update(x=a["x"][0]),
    "channels": lambda a: a.update(x=a["x"][:, :-1]),
    "no pixels": lambda a: a.update(x=a["x"][:, :, :0]),
    "integer x": lambda a: a.update(x=a["x"].long()),
    "complex x": lambda a: a.update(x=a["x"].to(torch.complex64)),
    "half x": lambda a: a.update(x=a["x"].half()),
    "meta x": lambda a: a.update(x=a["x"].to("meta")),
    "sparse x": lambda a: a.update(x=a["x"].to_sparse()),
    "double weight": lambda a: a.update(weight=a["weight"].double()),
    "empty weight": lambda a: a.update(weight=a["weight"][:0]),
    "bias length": lambda a: a.update(bias=torch.zeros(3)),
    "bias dtype": lambda a: a.update(bias=torch.zeros(8, dtype=torch.long)),
    "b beside that of the spec": lambda a: a.update(b=torch.ones(())),
}
BAD_FOR_THE_TENSORS = {
    "groups": {"groups": 4},
    "kernel beyond the input": {"dilation": (9, 9)},
    "max_out": {"max_out": 3},
    "out_dtype": {"out_dtype": F64},
    "no b": {"b": None},
    "the linear layer's": {"stride": (), "padding": (), "dilation": ()},
}
GOOD = {
    "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "border": (), "groups": 1, "max_out": 1, "b": 2.0,
    "unit": True, "norm_eps": (1e-6, 0.0), "cos_eps": 1e-6, "exact_two": True, "out_dtype": F32,
}  # fmt: skip
BAD_OPTIONS = [
    ("stride", (0, 1), "stride is 0, allowed: 1 to"),
    ("stride", (1,), "stride has 1 values, allowed: 2"),
    ("stride", (), "stride has 0 values, allowed: 2"),
    ("padding", (-1, 0), "padding is -1, allowed: 0 to"),
    ("dilation", (2**62, 1), "dilation is 4611686018427387904, allowed: 1 to"),
    ("groups", 0, "groups is 0, allowed: 1 or more"),
    ("max_out", 0, "max_out is 0, allowed: 1 to 255"),
    ("max_out", 256, "max_out is 256, allowed: 1 to 255"),
    ("b", 0.5, "b is 0.5, allowed: a finite number of 1 or more"),
    ("b", float("nan"), "b is nan, allowed: a finite number of 1 or more"),
    ("norm_eps", (-1.0, 0.0), r"norm_eps\[0\] is -1, allowed: a finite number of 0 or more"),
    ("norm_eps", (0.0, float("inf")), r"norm_eps\[1\] is inf, allowed: "),
    ("cos_eps", -1.0, "cos_eps is -1, allowed: a finite number of 0 or more"),
    ("out_dtype", torch.long, "out_dtype is Long, allowed: a floating point dtype"),
]


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(name):
    arguments = Case().inputs()
    spec = _C.TransformSpec(**GOOD)
    _C.transform_forward(**arguments, spec=spec)
    BAD_TENSORS[name](arguments)
    with pytest.raises((ValueError, TypeError), match="allowed"):
        _C.transform_forward(**arguments, spec=spec)


@pytest.mark.parametrize("b", [torch.ones(2), torch.ones((), dtype=torch.long), torch.ones((), device="meta")])
def test_bad_tensors_of_b(b):
    arguments = Case(tensor_b=True).inputs()
    spec = _C.TransformSpec(**GOOD | {"b": None})
    _C.transform_forward(**arguments, spec=spec)
    with pytest.raises((ValueError, TypeError), match=r"b (has|is on) .*allowed"):
        _C.transform_forward(**arguments | {"b": b}, spec=spec)


@pytest.mark.parametrize("name", BAD_FOR_THE_TENSORS)
def test_options_that_do_not_fit_the_tensors(name):
    spec = _C.TransformSpec(**GOOD | BAD_FOR_THE_TENSORS[name])
    with pytest.raises((ValueError, TypeError), match="allowed"):
        _C.transform_forward(**Case().inputs(), spec=spec)


@pytest.mark.parametrize("option, value, message", BAD_OPTIONS)
def test_bad_options(option, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _C.TransformSpec(**GOOD | {option: value})


def test_a_spec_shows_its_options_and_keeps_them():
    spec = _C.TransformSpec(**GOOD)
    assert {name: getattr(spec, name) for name in GOOD} == GOOD
    assert repr(spec) == f"TransformSpec({', '.join(f'{name}={value}' for name, value in GOOD.items())})"
    linear = _C.TransformSpec(**GOOD | {"stride": (), "padding": (), "dilation": (), "b": None})
    assert linear.stride == linear.padding == linear.dilation == () and linear.b is None
    for name, value in GOOD.items():
        with pytest.raises(AttributeError):
            setattr(spec, name, value)
    with pytest.raises(ValueError, match="groups is 2, allowed: 1 for a linear layer"):
        _C.TransformSpec(**GOOD | {"stride": (), "padding": (), "dilation": (), "groups": 2})
    with pytest.raises(TypeError):
        _C.TransformSpec(*GOOD.values())


@pytest.mark.parametrize("index", range(8))
def test_bad_saved_tensors(index):
    for base in (LINEAR, Case()):
        # y is read for b = 2 alone, and a tensor of b where the spec has none
        case = replace(base, max_out=2, b=2.0 if index == 4 else 1.5, tensor_b=index == 3)
        inputs = case.inputs()
        outputs = list(forward(case, **inputs))
        grad = torch.randn(outputs[0].shape)
        arguments = [grad, inputs["x"], inputs["weight"], inputs["b"], *outputs]
        if index == 3:
            arguments[3] = torch.ones(3)
        elif arguments[index].dim() == 1:
            continue
        else:
            arguments[index] = arguments[index][:, :-1]
        with pytest.raises((ValueError, TypeError), match="allowed"):
            backward(case, *arguments[:4], arguments[4:])
