"""One check for every backend, device and mode: output and gradients of a case within their error budget."""

from __future__ import annotations

import torch
from cases import Budget, Case, their_result


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
