"""What every backend of the norm must do, on whatever device it runs: tests that take ``backend`` and ``device``.

A test module imports them all, says in ``DTYPES`` which dtypes its backends have, and has the two fixtures.
"""

import pytest
import torch
from cases import error
from norm_cases import BY_NAME, CHANNELS_LAST, results

from bcos_kernels.functional import norm
from bcos_kernels.norm import NORM, Spec

__all__ = [
    "pytest_generate_tests", "test_equal_values_have_their_own_mean_and_no_variance",
    "test_nan_and_inf_reach_what_they_reach_in_the_reference", "test_nothing_to_normalize",
    "test_one_value_or_one_channel", "test_opcheck", "test_parameters_of_another_dtype", "test_partial_gradients",
    "test_results_may_be_changed_in_place", "test_saved_tensors_come_back_in_other_memory",
    "test_strides_are_respected", "test_sums_of_integers_are_exact",
]  # fmt: skip

OVER = ("batch", "all_last", "group", "group_last", "position", "position_last", "token")
"""A case of each way through the kernels."""


def pytest_generate_tests(metafunc):
    """The dtypes of a test are those of the module that imports it, but for float64, in which less is rounded."""
    if "dtype" in metafunc.fixturenames and "case" not in metafunc.fixturenames:
        dtypes = [dtype for dtype in metafunc.module.DTYPES if dtype != torch.float64]
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype)[6:])


def integers(*shape: int, seed: int, format=torch.contiguous_format) -> torch.Tensor:
    values = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()
    return values.contiguous(memory_format=format) if len(shape) == 4 else values


@pytest.mark.parametrize("format", [torch.contiguous_format, CHANNELS_LAST], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
def test_sums_of_integers_are_exact(centered, format, dtype, device):
    """With a variance of 1 nothing is rounded: results are equal, not close."""
    x, grad = (integers(3, 5, 4, 5, seed=seed, format=format).to(device, dtype).requires_grad_() for seed in (0, 1))
    weight, bias, mean = (integers(5, seed=seed).to(device, dtype).requires_grad_() for seed in (2, 3, 4))
    statistics = {"var": torch.ones(5, device=device)} | ({"mean": mean.detach()} if centered else {})
    y = norm(x, weight, bias, centered=centered, eps=0.0, out_dtype=torch.float32, **statistics)
    moved = x.double() - (mean.double()[:, None, None] if centered else 0)
    gamma, beta = (t.double()[:, None, None] for t in (weight, bias))
    grads = torch.autograd.grad(y, (x, weight, bias), grad.detach().float())
    sums = [(grad.double() * moved).sum((0, 2, 3)), grad.double().sum((0, 2, 3))]
    for found, expected in zip((y, *grads), (moved * gamma + beta, grad.double() * gamma, *sums), strict=True):
        assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize("name", OVER)
def test_equal_values_have_their_own_mean_and_no_variance(name, device):
    """Exactly, also far from 0."""
    case = BY_NAME[name]
    x = torch.full(case.x, 12345.678, device=device).contiguous(memory_format=case.format)
    y, mean, var = norm(x, centered=True, return_statistics=True, **case.options)
    assert torch.equal(mean, torch.full_like(mean, 12345.678)) and not var.any() and not y.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OVER)
def test_nan_and_inf_reach_what_they_reach_in_the_reference(name, value, backend, device):
    case = BY_NAME[name]
    for centered in (False, True):
        tensors = case.tensors(torch.float32, centered)
        tensors["x"][(1,) * len(case.x)] = value
        found = results(case, tensors, centered, device, backend=backend)
        theirs = results(case, tensors, centered, backend="reference")
        for what in found:
            if what != "mean":  # of an infinite value it may be either
                assert torch.equal(found[what].isfinite(), theirs[what].isfinite()), what
        assert not found["y"].isfinite().all() and not found["dx training"].isfinite().all()


def run(x, grad, weight=None, bias=None, **options):
    """y and the gradients of all that is given."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, weight, bias)]
    y = norm(*leaves, **options)
    grads = torch.autograd.grad(
        y, [t for t in leaves if t is not None], y.new_tensor(1.0).expand(y.shape) if grad is None else grad
    )
    return y.detach(), *grads


def odd_memory(t):
    """A tensor's values with every kind of strides that occurs."""
    wide = torch.cat([t, t], -1)
    yield "sliced", torch.stack([t, t], -1)[..., 0]
    yield "split", wide[..., t.shape[-1] :]
    yield "transposed", t.transpose(0, -1).contiguous().transpose(0, -1)
    shifted = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].as_strided(t.shape, t.stride(), 1)
    yield "unaligned", shifted.copy_(t)


@pytest.mark.parametrize("name", OVER)
def test_strides_are_respected(name, device):
    """Those of x and of the gradient; y and dx have the strides that torch gives to a tensor like x."""
    case = BY_NAME[name]
    tensors = {name: t.to(device) for name, t in case.tensors(torch.float32, True).items()}
    x, grad, weight = tensors["x"], tensors["grad"], tensors["weight"]
    expected = run(x, grad, weight, **case.options)
    for (kind, other), (_, upward) in zip(odd_memory(x), odd_memory(grad), strict=True):
        found = run(other, upward, torch.stack([weight, weight], -1)[:, 1], **case.options)
        for value, plain in zip(found, expected, strict=True):
            assert error(value, plain) < 1e-6, kind
        if name != "token":  # whose dimensions are merged first
            assert found[0].stride() == found[1].stride() == torch.empty_like(other).stride(), kind
    ones, expanded = run(x, torch.ones_like(x), **case.options), run(x, None, **case.options)
    assert all(torch.equal(a, b) for a, b in zip(ones, expanded, strict=True))
    repeated = x[:1].expand(3, *x.shape[1:])
    assert error(norm(repeated, **case.options), norm(repeated.clone(), **case.options)) < 1e-6


def elsewhere(kind: str):
    """A context in which a backward gets what a forward saved in other memory: strided as ``odd_memory`` has it."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: dict(odd_memory(t))[kind] if t.dim() and t.numel() else t
    )


@pytest.mark.parametrize("kind", ["sliced", "unaligned"])
@pytest.mark.parametrize("name", OVER)
def test_saved_tensors_come_back_in_other_memory(name, kind, device):
    """As hooks may return them that keep them elsewhere."""
    case = BY_NAME[name]
    given = [t.to(device) for key, t in case.tensors(torch.float32, True).items() if key in ("x", "grad", "weight")]
    for options in ({}, {"detach": True}):
        expected = run(*given, centered=True, **case.options | options)
        with elsewhere(kind):
            found = run(*given, centered=True, **case.options | options)
        for value, plain in zip(found, expected, strict=True):
            assert error(value, plain) < 1e-6


@pytest.mark.parametrize("shape", [(0, 6, 5, 3), (0, 6), (2, 6, 0, 3)], ids=str)
@pytest.mark.parametrize("over", ["batch", "all", "group", "position"])
def test_nothing_to_normalize(over, shape, device):
    """A grid of no programs is never started; gradients of parameters are zeros, statistics what the reference has."""
    x, weight, bias = torch.ones(shape, device=device), torch.ones(6, device=device), torch.ones(6, device=device)
    y, dx, dweight, dbias = run(x, None, weight, bias, over=over)
    assert y.shape == dx.shape == shape
    assert torch.equal(dweight, torch.zeros(6, device=device)) and torch.equal(dbias, dweight)
    found, theirs = (norm(x, over=over, return_statistics=True, backend=b)[1:] for b in (None, "reference"))
    for mine, yours in zip(found, theirs, strict=True):
        assert mine.shape == yours.shape and torch.equal(mine.isnan(), yours.isnan())


@pytest.mark.parametrize("shape, over", [
    ((1, 5, 1, 1), "batch"), ((1, 5), "batch"), ((3, 1, 2, 2), "position"), ((4, 1), "position"), ((1, 1, 1, 1), "all"),
    ((3, 1, 2, 2), "all"), ((3, 1, 2, 2), "group"), ((1, 1, 7, 1), "batch"),
])  # fmt: skip
def test_one_value_or_one_channel(shape, over, device):
    x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
    weight = torch.randn(shape[1], device=device)
    for centered in (False, True):
        options = {"over": over, "centered": centered}
        found = run(x, grad, weight, **options)
        truth = run(*(t.cpu().double() for t in (x, grad, weight)), **options, backend="reference")
        for value, exact in zip(found, truth, strict=True):
            assert (value.cpu() - exact).abs().max() < 3e-5 * max(1, exact.abs().max())


@pytest.mark.parametrize("name", ["batch", "all_last", "group_last", "token"])
def test_partial_gradients(name, backend, device):
    """Only what is asked for is computed, whatever is asked for; and twice the same."""
    case = BY_NAME[name]
    for centered in (False, True):
        tensors = {name: t.to(device) for name, t in case.tensors(torch.bfloat16, centered).items()}
        leaves = [tensors[name] for name in ("x", "weight", "bias") if name in tensors]
        whole = [t.detach().requires_grad_() for t in leaves]
        options = {"centered": centered, "backend": backend, **case.options}
        grads = torch.autograd.grad(norm(*whole, **options), whole, tensors["grad"])
        for which, expected in enumerate(grads):
            alone = [t.detach() for t in leaves]
            alone[which].requires_grad_()
            (found,) = torch.autograd.grad(norm(*alone, **options), alone[which], tensors["grad"])
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["batch_last", "group", "token"])
def test_parameters_of_another_dtype(name, backend, device):
    """fp32 parameters with x in half precision: y and their gradients are fp32, dx is not; and the early mode."""
    case = BY_NAME[name]
    tensors = case.tensors(torch.bfloat16, True)
    tensors |= {name: tensors[name].float() for name in ("weight", "bias") if name in tensors}
    found = results(case, tensors, True, device, backend=backend)
    truth = results(case, {name: t.double() for name, t in tensors.items()}, True, backend="reference")
    assert (
        found["y"].dtype == found["dweight training"].dtype == torch.float32
        and found["dx frozen"].dtype == torch.bfloat16
    )
    for what, exact in truth.items():
        assert error(found[what], exact) < (4e-3 if what.startswith("dx") else 1e-6), what
    x, weight, grad = (tensors[name].to(device) for name in ("x", "weight", "grad"))
    early = run(x, grad.float(), weight, centered=True, detach=True, backend=backend, **case.options)
    assert torch.equal(early[1].cpu(), found["dx frozen"])


@pytest.mark.parametrize("name", OVER)
def test_results_may_be_changed_in_place(name, device):
    """They are no views, and the backward reads none of them but the statistics."""
    case = BY_NAME[name]
    tensors = {name: t.to(device) for name, t in case.tensors(torch.float32, True).items()}
    x, weight = tensors["x"].requires_grad_(), tensors["weight"].requires_grad_()
    y, *statistics = norm(x, weight, centered=True, return_statistics=True, **case.options)
    grads = torch.autograd.grad(y.mul_(2.0), (x, weight), tensors["grad"])
    assert name == "token" or not any(t._is_view() for t in (y, *statistics, *grads))
    expected = run(x, 2.0 * tensors["grad"], weight, centered=True, **case.options)
    assert all(torch.equal(mine, yours) for mine, yours in zip(grads, expected[1:], strict=True))


@pytest.mark.parametrize("name", ["batch", "batch_given", "group_last", "position_last"])
def test_opcheck(name, device):
    case = BY_NAME[name]
    tensors = {name: t.to(device) for name, t in case.tensors(torch.float32, True).items()}
    spec = Spec(case.options.get("over", "batch"), case.options.get("groups", 1), True)
    inputs = tensors["x"], tensors["weight"], None, tensors.get("mean"), tensors.get("var")
    backend = NORM.choose(NORM.call(NORM.inputs(*inputs), spec))
    outputs = NORM.forward_operator(*inputs, *spec.flat(), backend)
    torch.library.opcheck(NORM.forward_operator, (*inputs, *spec.flat(), backend))
    needs = [True, True, False, False, False]
    backward = (tensors["grad"], *inputs, None, *outputs[1:], *spec.flat(), False, needs, backend)
    torch.library.opcheck(NORM.backward_operator, backward)
