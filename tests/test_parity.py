"""Every backend × case × dtype: output and gradients against float64, never worse than the reference's own error."""

import pytest
import torch
from cases import BACKENDS, CASES, IDS, enough, error, their_result, upstream
from parity import check

from bcos_kernels.transform import TRANSFORM

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


COMBINATIONS = [
    pytest.param(
        case,
        backend,
        dtype,
        id=f"{case.name}-{backend}-{str(dtype)[6:]}",
        marks=() if backend == "cpu" and dtype in (torch.float64, torch.float32) else pytest.mark.slow,
    )
    for case in CASES
    for backend in BACKENDS
    for dtype in DTYPES
]


@pytest.mark.parametrize("case, backend, dtype", COMBINATIONS)
def test_forward_and_gradients(case, backend, dtype, request):
    """The C++ kernels on several threads, in the dtypes whose threads have no test of their own, as bfloat16 has."""
    if backend == "cpu" and dtype in (torch.float64, torch.float32):
        request.getfixturevalue("several_threads")
    check(case, backend, dtype, seeds=range(enough(5, case, dtype)))


@pytest.mark.parametrize("case", [c for c in CASES if upstream(c, torch.float64)], ids=lambda c: c.name)
def test_naive_formula_is_the_published_one(case):
    """The oracle itself: the eager formula of the tests equals ``bcos`` in float64."""
    inputs = case.inputs(torch.float64)
    y, grads = their_result(case, torch.float64, inputs, torch.ones(()).double().expand_as(case.naive(*inputs)))
    again = case.naive(*inputs)
    assert error(again, y) < 1e-14
    for ours, theirs in zip(torch.autograd.grad(again.sum(), inputs[:2]), grads, strict=True):
        assert error(ours, theirs) < 1e-13


@pytest.mark.parametrize("name", ["conv3x3", "conv1x1", "depthwise", "grouped", "max_out_b1", "linear", "wide_1x1"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_integers_are_exact(name, backend, several_threads):
    """Small integers make every sum exact in fp32: l, dgrad and wgrad must be equal, not close."""
    case = IDS[name]
    gen = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, case.x, generator=gen).float().requires_grad_()
    weight = torch.randint(-3, 4, case.weight, generator=gen).float().requires_grad_()
    options = {"b": 1, "normalize_weights": False, "backend": backend}
    y = case(x, weight, **options)
    grad = torch.randint(-3, 4, y.shape, generator=gen).float()
    dx, dw = torch.autograd.grad(y, (x, weight), grad)
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight)]
    exact = case.naive(*exact_inputs, b=1, normalize_weights=False)
    exact_dx, exact_dw = torch.autograd.grad(exact, exact_inputs, grad.double())
    assert torch.equal(y.double(), exact)
    assert torch.equal(dx.double(), exact_dx)
    assert torch.equal(dw.double(), exact_dw)


def test_every_backend_is_in_the_table():
    assert {*BACKENDS, "cuda", "triton"} == set(TRANSFORM.backends)
