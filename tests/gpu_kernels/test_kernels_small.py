"""Outputs in fp16 below its normal numbers, 6e-5, have lost digits: at b = 2 every derivative needs l, not y."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cases import Budget, Case, error, their_result
from second_checks import outcome
from where import CANDIDATES, DEVICE, STANDS_IN

F16 = torch.float16
CASES = {
    case.name: case
    for case in (
        Case("conv3x3", (2, 40, 5, 5), (8, 40, 3, 3), {"padding": 1}),
        Case("conv1x1", (2, 200, 4, 4), (24, 200, 1, 1)),
        Case("linear", (20, 200), (24, 200)),
        Case("bias", (20, 200), (24, 200), {"normalize_weights": False}, True),
        Case("grouped", (2, 80, 4, 4), (16, 20, 3, 3), {"padding": 1, "groups": 4}),
        Case("depthwise", (1, 10, 8, 8), (10, 1, 7, 7), {"padding": 3, "groups": 10}),
        Case("max_out", (2, 40, 5, 5), (12, 40, 3, 3), {"padding": 1, "max_out": 2}),
    )
}
SEEDS = range(2) if STANDS_IN else range(5)
MOST = 4 * torch.finfo(F16).eps


def small_inputs(case: Case, seed: int):
    """Inputs whose l is about 1e-4 and whose outputs are about 1e-5, in NHWC."""
    x, weight, bias = (None if t is None else t.detach() for t in case.inputs(F16, seed, channels_last=True))
    return x.mul(1e-4), weight if bias is None else weight.mul(0.05), None if bias is None else bias.mul(3e-5)


def moved(tensors, where=DEVICE, dtype=F16):
    return [t.to(where, dtype).requires_grad_() for t in tensors if t is not None]


@pytest.mark.parametrize("direction", ["training", "explanation"])
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", CASES)
def test_gradients(name, candidate, direction, force):
    """Of the candidate, or of what serves the layer in its place."""
    force(candidate)
    case = CASES[name]
    budget = Budget()
    if direction == "explanation":
        case = replace(case, options={**case.options, "detach": True})
    for seed in SEEDS:
        inputs = small_inputs(case, seed)
        ours = moved(inputs)
        y = case(*ours)
        assert y.dtype == F16 and 1e-7 < y.abs().median() < 5e-5
        grad = torch.randn_like(y.detach().cpu())
        wanted = ours if direction == "training" else ours[:1]
        found = torch.autograd.grad(y, wanted, grad.to(DEVICE))
        truth, theirs = (their_result(case, dtype, inputs, grad)[1] for dtype in (torch.float64, F16))
        for what, mine, exact, reference in zip(("dx", "dw", "dbias"), found, truth, theirs, strict=False):
            budget.add(what, mine.cpu(), reference, exact)
            assert error(mine.cpu(), exact) < MOST, what
    budget.check()


@pytest.mark.parametrize("mode", ["training", "early"])
@pytest.mark.parametrize("name", ["conv1x1", "linear", "depthwise"])
def test_second_derivatives(name, mode, backend, force):
    """Those of the gradient, which are of ordinary size."""
    force("vendor")
    case = CASES[name]
    inputs = dict(zip(("x", "weight"), small_inputs(case, 0), strict=False))
    upward = torch.randn(case.naive(*inputs.values()).shape).to(F16)
    found, truth = (
        outcome(partial(case, backend=used), {k: t.to(where, dtype) for k, t in inputs.items()}, mode, False, upward)
        for used, where, dtype in ((backend, DEVICE, F16), ("reference", "cpu", torch.float64))
    )
    for what in ("dx", "dupward of the loss"):
        assert error(found[what], truth[what]) < MOST, what
