"""Bad input: TypeError or ValueError that names the argument, its value and what is allowed, before any kernel runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bcos_kernels as bk
from bcos_kernels.core import autograd, dispatch

conv2d, linear = bk.functional.bcos_conv2d, bk.functional.bcos_linear
F8 = torch.float8_e4m3fn
X, W = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
ROWS, FILTERS = torch.randn(5, 8), torch.randn(6, 8)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: conv2d(X[0, 0], W), ValueError, "x has shape (8, 8)"),
        (lambda: conv2d(X[None], W), ValueError, "x has shape (1, 2, 4, 8, 8)"),
        (lambda: conv2d(X, W[0]), ValueError, "weight has shape (4, 3, 3): 4 non-empty dimensions"),
        (lambda: conv2d(X, W[:0]), ValueError, "weight has shape (0, 4, 3, 3)"),
        (lambda: conv2d(X, W, groups=2), ValueError, "takes 8"),
        (lambda: conv2d(X, W[:, :1], groups=4), ValueError, "groups=4 does not divide the 6 output channels"),
        (lambda: conv2d(X, W[:, :2], groups=2, max_out=2), ValueError, "groups=2 does not divide the 3"),
        (lambda: conv2d(X, W, groups=0), ValueError, "groups=0: must be at least 1"),
        (lambda: conv2d(X.long(), W), TypeError, "x has dtype torch.int64"),
        (lambda: conv2d(X, W.cfloat()), TypeError, "weight has dtype torch.complex64"),
        (lambda: conv2d(X.double(), W), TypeError, "weight has dtype torch.float32, x has torch.float64"),
        (lambda: conv2d(X, W.to("meta")), ValueError, "weight is on meta, x on cpu"),
        (lambda: conv2d(X, W, torch.randn(5)), ValueError, "bias has shape (5,): (6,)"),
        (lambda: conv2d(X, W, b=0.5), ValueError, "b=0.5: must be finite and at least 1"),
        (lambda: conv2d(X, W, b=float("nan")), ValueError, "b=nan"),
        (lambda: conv2d(X, W, b=float("inf")), ValueError, "b=inf"),
        (lambda: conv2d(X, W, b="2"), TypeError, "b='2'"),
        (lambda: conv2d(X, W, b=torch.ones((), device="meta")), ValueError, "b is on meta, x on cpu: both must"),
        (lambda: conv2d(X, W, b=torch.ones(2)), ValueError, "b: a tensor must hold one floating-point value"),
        (lambda: conv2d(X, W, max_out=0), ValueError, "max_out=0: must be at least 1"),
        (lambda: conv2d(X, W, max_out=4), ValueError, "max_out=4 does not divide the weight's 6 filters"),
        (lambda: conv2d(X, W, W[:, 0, 0, 0], weight_in_norm=True, backend="cpu"), ValueError, "has a bias beside it"),
        (lambda: conv2d(X, W, max_out=2, weight_in_norm=True), ValueError, "weight_in_norm=True needs max_out=1"),
        (lambda: conv2d(X, W, max_out=1.5), TypeError, "max_out=1.5: an int"),
        (lambda: conv2d(X, W, stride=0), ValueError, "stride=0: must be at least 1"),
        (lambda: conv2d(X, W, stride=(1, 2, 3)), ValueError, "stride=(1, 2, 3)"),
        (lambda: conv2d(X, W, padding=-1), ValueError, "padding=-1: must be at least 0"),
        (lambda: conv2d(X, W, padding="full"), ValueError, "padding='full'"),
        (lambda: conv2d(X, W, padding="same", stride=2), ValueError, "padding='same' needs stride 1"),
        (lambda: conv2d(X, W, padding_mode="mirror"), ValueError, "padding_mode='mirror': allowed are 'zeros'"),
        (lambda: conv2d(X, W, padding=9, padding_mode="reflect"), ValueError, "padding=9 is too large"),
        (lambda: conv2d(X, W, dilation=4), ValueError, "the kernel spans 9 pixels of height"),
        (lambda: conv2d(X, W, dilation="2"), TypeError, "dilation='2'"),
        (lambda: conv2d(X, W, norm_eps=(0, 0)), ValueError, "norm_eps=(0, 0)"),
        (lambda: conv2d(X, W, norm_eps=1e-6), ValueError, "norm_eps=1e-06: two floats"),
        (lambda: conv2d(X, W, cos_eps=-1), ValueError, "cos_eps=-1"),
        (lambda: conv2d(X, W, detach={}), TypeError, "detach={}"),
        (lambda: conv2d(X, W, detach=1), TypeError, "detach=1"),
        (lambda: conv2d(X, W, exact_two=""), TypeError, "exact_two=''"),
        (lambda: conv2d(X, W, normalize_weights=None), TypeError, "normalize_weights=None"),
        (lambda: conv2d(X, W, weight_in_norm=2), TypeError, "weight_in_norm=2"),
        (lambda: conv2d(X, W, out_dtype=torch.int8), ValueError, "out_dtype=torch.int8"),
        (lambda: conv2d(X, W, backend="cudnn"), ValueError, "backend='cudnn': allowed are"),
        (lambda: conv2d(X, W, backend=1), ValueError, "backend=1: allowed are"),
        (lambda: conv2d(X.to(F8), W.to(F8), backend="cpu"), ValueError, "backend='cpu' cannot serve this call: dtype"),
        (lambda: conv2d(X, W, backend="triton"), ValueError, "backend='triton' cannot serve this call: device is"),
        (lambda: conv2d([1.0], W), TypeError, "x: a Tensor is needed, not list"),
        (lambda: conv2d(X.to_sparse(), W), TypeError, "x has layout torch.sparse_coo"),
        (lambda: linear(ROWS[:, :7], FILTERS), ValueError, "x has shape (5, 7): (..., 8)"),
        (lambda: linear(torch.tensor(1.0), FILTERS), ValueError, "x has shape ()"),
        (lambda: linear(ROWS, FILTERS[0]), ValueError, "weight has shape (8,)"),
        (lambda: linear(ROWS, FILTERS, torch.randn(6, 1)), ValueError, "bias has shape (6, 1)"),
        (lambda: linear(ROWS, FILTERS, max_out=5), ValueError, "max_out=5 does not divide"),
        (lambda: linear(ROWS, FILTERS, b=-2), ValueError, "b=-2"),
    ],
)  # fmt: skip
def test_message(call, error, words, monkeypatch):
    def kernel(*_):
        raise AssertionError("a kernel ran")

    monkeypatch.setattr(autograd, "apply", kernel)
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)


def test_forced_backend_of_the_environment(monkeypatch):
    monkeypatch.setattr(dispatch, "FORCED", "cpu")
    with pytest.raises(ValueError, match="BCOS_KERNELS_BACKEND='cpu' cannot serve"):
        conv2d(X.to(F8), W.to(F8))
    monkeypatch.setattr(dispatch, "FORCED", "nonsense")
    with pytest.raises(ValueError, match=r"BCOS_KERNELS_BACKEND='nonsense': allowed are .*'cuda,triton'$"):
        conv2d(X, W)


small = st.integers(-2, 6)
anything = st.one_of(
    small, st.floats(), st.none(), st.text(max_size=3), st.booleans(), st.tuples(small, small),
    st.sampled_from(["same", "valid", "zeros", "reflect", "cpu", "reference"]),
    st.sampled_from([torch.tensor(2.0), torch.tensor(1), torch.float16, {"fixed_weights": True}]),
)  # fmt: skip
dims = st.integers(0, 5)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32])
OPTIONS = [
    "stride", "padding", "dilation", "groups", "padding_mode", "b", "max_out", "normalize_weights", "weight_in_norm",
    "norm_eps", "cos_eps", "exact_two", "detach", "out_dtype", "backend",
]  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    x=st.lists(dims, min_size=0, max_size=5), weight=st.lists(dims, min_size=0, max_size=5), dtype=dtypes,
    other=dtypes, options=st.dictionaries(st.sampled_from(OPTIONS), anything, max_size=4),
    is_conv=st.booleans(), bias=st.one_of(st.none(), dims), data=st.booleans(),
)  # fmt: skip
def test_no_argument_crashes_the_process(x, weight, dtype, other, options, is_conv, bias, data):
    """Any arguments: a result of the right dtype, or a TypeError or ValueError with words."""
    layer = conv2d if is_conv else linear
    x, weight = torch.ones(x, dtype=dtype), torch.ones(weight, dtype=dtype if data else other)
    bias = None if bias is None else torch.ones(bias, dtype=dtype)
    options = {k: v for k, v in options.items() if is_conv or k not in OPTIONS[:5]}
    if x.is_floating_point():
        x.requires_grad_()
    try:
        y = layer(x, weight, bias, **options)
    except (TypeError, ValueError) as refused:
        assert str(refused)
        return
    if y.requires_grad:
        y.float().sum().backward()
        assert x.grad.shape == x.shape
