"""Checks for every backend, device and mode: output and gradients of a case within their error budget."""

from __future__ import annotations

import torch
from cases import Budget, Case, their_result, upstream


def check(
    case: Case, backend: str, dtype: torch.dtype, *, device: str = "cpu", seeds=range(5), formats=(False, True)
) -> None:
    """``case`` on ``backend`` against float64 on the CPU, per memory format; a format of the list is channels_last."""
    for channels_last in formats if len(case.x) in (4, 5) else (False,):
        budget = Budget()
        for seed in seeds:
            inputs = case.inputs(dtype, seed, channels_last)
            ours = [None if t is None else t.detach().to(device).requires_grad_() for t in inputs]
            y = case(*ours, backend=backend)
            assert y.dtype == dtype
            grad = torch.randn_like(y.detach().cpu())
            grads = torch.autograd.grad(y, [t for t in ours if t is not None], grad.to(device))
            truth, true_grads = their_result(case, torch.float64, inputs, grad)
            theirs, their_grads = their_result(case, dtype, inputs, grad)
            budget.add("y", y.cpu(), theirs, truth)
            for name, found, *others in zip(("dx", "dw", "dbias"), grads, their_grads, true_grads, strict=False):
                budget.add(name, found.cpu(), *others)
        budget.check()


def check_autocast(case: Case, dtype: torch.dtype, *, device: str = "cpu", seeds=range(5), out_dtype=None) -> None:
    """fp32 parameters, the reference's output dtypes, fp32 gradients, errors within its own; the backward outside.

    ``out_dtype`` asks for another dtype of the output than the reference's.
    """
    budget = Budget()
    for seed in seeds:
        x, weight, _ = (None if t is None else t.detach().to(device) for t in case.inputs(torch.float32, seed))
        module = upstream(case, torch.float32).to(device)
        with torch.no_grad():
            module.linear.weight.copy_(weight)
        x, weight = x.requires_grad_(), weight.requires_grad_()
        with torch.autocast(device, dtype):
            y, theirs = case(x, weight, out_dtype=out_dtype), module(x)
        assert y.dtype == (out_dtype or theirs.dtype)
        upward = torch.randn_like(y)
        found = torch.autograd.grad(y, (x, weight), upward)
        others = torch.autograd.grad(theirs, (x, module.linear.weight), upward.to(theirs.dtype))
        exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight)]
        exact = case.naive(*exact_inputs)
        truth = torch.autograd.grad(exact, exact_inputs, upward.double())
        assert all(mine.dtype == torch.float32 for mine in found)
        for what, *results in zip(("y", "dx", "dw"), (y, *found), (theirs, *others), (exact, *truth), strict=True):
            budget.add(what, *results, dtype)
    budget.check()
