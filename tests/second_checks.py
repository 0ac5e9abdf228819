"""What every backend with second derivatives must do: losses on explanations, of layers and of norms.

A test module imports the tests, says in ``DTYPES`` and ``CASE_NAMES`` what its backends have, and has the fixtures
``backend`` and ``device``.
"""

from __future__ import annotations

from functools import partial
from operator import getitem

import pytest
import torch
from cases import IDS, Budget, enough, error, naive
from norm_cases import BY_NAME

from bcos_kernels.core.formula import FrozenScale
from bcos_kernels.functional import norm
from bcos_kernels.norm import NORM
from bcos_kernels.transform import TRANSFORM

__all__ = [
    "MODES", "check_layer", "check_norm", "kernels_used", "pytest_generate_tests", "test_error_of_a_layer",
    "test_error_of_a_norm", "test_zero_rows_and_filters",
]  # fmt: skip

SEEDS = 9
MODES = ("training", "early", "late")
NORMS = (
    "batch",
    "batch_last",
    "batch_given_last",
    "all_last",
    "group",
    "group_last",
    "position",
    "position_last",
    "token",
)


def pytest_generate_tests(metafunc):
    """The cases and dtypes of a test are those of the module that imports it."""
    if "layer" in metafunc.fixturenames:
        metafunc.parametrize("layer", metafunc.module.CASE_NAMES)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", metafunc.module.DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture
def kernels_used(monkeypatch):
    """The outcomes of ``Op.second`` so far: whether a kernel formed the second derivative."""
    used = []
    for op in (TRANSFORM, NORM):

        def second(*args, original=op.second):
            found = original(*args)
            used.append(found is not None)
            return found

        monkeypatch.setattr(op, "second", second)
    return used


def outcome(function, inputs: dict, mode: str, ordinary: bool, upward) -> dict:
    """y, its gradient at x, and the gradients of a loss on that, which with ``ordinary`` contains y as well.

    ``function(detach=detach, **inputs)`` computes y. The late mode is on for the gradient alone, as in Model Guidance.
    """
    late = {"fixed_weights": False}
    inputs = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    y = function(detach={"training": False, "early": True, "late": late}[mode], **inputs)
    upward = upward.to(y.device, y.dtype).requires_grad_()
    late["fixed_weights"] = True
    (dx,) = torch.autograd.grad(y, inputs["x"], upward, create_graph=True)
    late["fixed_weights"] = False
    loss = dx.sin().sum() + (y.square().sum() if ordinary else 0)
    leaves = {**inputs, "upward": upward}
    grads = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
    found = {"y": y, "dx": dx} | {f"d{name} of the loss": g for name, g in zip(leaves, grads, strict=True)}
    return {name: t.detach().cpu() for name, t in found.items()}


def published(x, weight, bias=None, *, detach=False, **options):
    """The eager formula with a late mode as its authors have it."""
    if not isinstance(detach, dict):
        return naive(x, weight, bias, detach=detach, **options)
    attached = naive(x, weight, bias, **options)
    linear = naive(x, weight, bias, **{**options, "b": 1})
    frozen = partial(getitem, detach, "fixed_weights")
    return FrozenScale.apply(linear, attached / linear, frozen)


class Errors(Budget):
    """In float64 a second derivative near l = 0 magnifies the truth's rounding as well as ours: 1e-11 is allowed."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def check(self) -> None:
        if self.dtype == torch.float64:
            assert all(ours < 1e-11 for rows in self.rows.values() for ours, *_ in rows), self.rows
        else:
            super().check()


def check_layer(layer, mode, ordinary, dtype, backend, device, kernels_used, seeds=SEEDS):
    """The error of a layer's results is at most that of the published formula.

    For b between 1 and 2 the second derivative is unbounded at l = 0, where chance decides whose rounding is larger.

    There half-precision and fp32 inputs are positive, so that no l is near 0; float64 has both signs.
    """
    case = IDS[layer]
    budget = Errors(dtype)
    for seed in range(1 if dtype == torch.float64 else seeds):
        inputs = case.inputs(dtype, seed, channels_last=seed % 2 == 0)
        named = {name: t.detach() for name, t in zip(("x", "weight", "bias"), inputs, strict=True) if t is not None}
        if 1 < case.options.get("b", 2) < 2 and dtype != torch.float64:
            named = {name: t.abs() for name, t in named.items()}
        upward = torch.randn_like(case(*inputs, backend="reference").detach())
        ours = {name: t.to(device) for name, t in named.items()}
        found = outcome(partial(case, backend=backend), ours, mode, ordinary, upward)
        assert kernels_used == [True]
        kernels_used.clear()
        wide = {name: t.double() for name, t in named.items()}
        exact = outcome(partial(case, backend="reference"), wide, mode, ordinary, upward)
        theirs = outcome(partial(published, **case.options), named, mode, ordinary, upward)
        kernels_used.clear()
        for name, truth in exact.items():
            assert found[name].dtype == theirs[name].dtype and found[name].shape == truth.shape, name
            budget.add(name, found[name], theirs[name], truth)
    budget.check()


def check_norm(name, mode, centered, ordinary, dtype, backend, device, kernels_used, seeds=SEEDS):
    """The error of a norm's results is at most that of the reference."""
    case = BY_NAME[name]
    budget = Errors(dtype)
    for seed in range(1 if dtype == torch.float64 else seeds):
        tensors = case.tensors(dtype, centered, seed)
        upward = tensors.pop("grad")
        given = {name: tensors.pop(name) for name in ("mean", "var") if name in tensors}

        def normed(detach, *, to, used, given=given, **ts):
            statistics = {name: t.to(to) for name, t in given.items()}
            return norm(**ts, **statistics, centered=centered, detach=detach, backend=used, **case.options)

        def run(to, used, tensors=tensors, upward=upward):
            moved = {name: t.to(to) for name, t in tensors.items()}
            return outcome(partial(normed, to=to, used=used), moved, mode, ordinary, upward)

        found = run(device, backend)
        assert kernels_used == [True]
        theirs, exact = run("cpu", "reference"), run(torch.float64, "reference")
        kernels_used.clear()
        for name, truth in exact.items():
            budget.add(name, found[name], theirs[name], truth)
    budget.check()


@pytest.mark.parametrize("ordinary", [False, True], ids=["explanation", "both"])
@pytest.mark.parametrize("mode", MODES)
def test_error_of_a_layer(layer, mode, ordinary, dtype, backend, device, kernels_used):
    seeds = enough(SEEDS, IDS[layer], dtype)
    check_layer(layer, mode, ordinary, dtype, backend, device, kernels_used, seeds)


@pytest.mark.parametrize("ordinary", [False, True], ids=["explanation", "both"])
@pytest.mark.parametrize("centered", [False, True], ids=["uncentered", "centered"])
@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", NORMS)
def test_error_of_a_norm(name, mode, centered, ordinary, dtype, backend, device, kernels_used):
    check_norm(name, mode, centered, ordinary, dtype, backend, device, kernels_used)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("b", [1, 1.5, 2, 2.5])
@pytest.mark.parametrize("name", ["conv3x3", "linear"])
def test_zero_rows_and_filters(name, b, mode, backend, device):
    """A zero patch and a zero filter have finite derivatives of every order, those of the reference."""
    case = IDS[name]
    x, weight, _ = case.inputs(torch.float32)
    x, weight = x.detach(), weight.detach()
    x[0], weight[0] = 0, 0
    inputs = {"x": x.to(device), "weight": weight.to(device)}
    upward = torch.randn_like(case(x, weight, b=b, backend="reference"))
    found, expected = (
        outcome(partial(case, b=b, backend=used), inputs, mode, True, upward) for used in (backend, "reference")
    )
    for what, value in expected.items():
        assert value.isfinite().all() and error(found[what], value) < 1e-5, what
