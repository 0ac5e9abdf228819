"""Linear layers with a bias and rows of x with a tiny norm, which the tests of all kernels share.

l is not as small as n there, and the gradient through n is not small beside that through l.
"""

from __future__ import annotations

import torch
from cases import Budget
from families import Bcosification, DynamicMultiplication
from torch import Tensor
from torch.autograd import grad

from bcos_kernels.functional import bcos_linear

__all__ = ["MODES", "SCALES", "check", "derivatives"]

MODES = ("training", "late")
"""In the late mode the scale is a constant of dx, and not of the gradients of dx."""


SCALES = (1e-9, 1e-12, 1e-13, 1e-15, 1e-18)


class Published(Bcosification.BcosifyLinear):
    """B-cosification's layer with the late mode of model guidance."""

    def __init__(self, *args, b: float) -> None:
        super().__init__(*args, b=b)
        self.dynamic_multiplication = DynamicMultiplication()

    def forward(self, x: Tensor) -> Tensor:
        l = self.linear(x)  # noqa: E741
        cos = l.abs() / self.calc_norms(x)
        return self.dynamic_multiplication(weight=cos if self.b == 2 else (cos + 1e-6) ** (self.b - 1), input=l)


def derivatives(layer, x, weight, bias, gradient, direction, dtype: torch.dtype, late=None) -> dict[str, Tensor]:
    """y, its gradients at x, weight and bias, and those of ⟨direction, dx⟩; ``late`` is the layer's mode."""
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
    y, gradient = layer(*leaves), gradient.to(dtype).requires_grad_()
    if late is not None:
        late["fixed_weights"] = True
    first = grad(y, leaves, gradient, create_graph=True)
    if late is not None:
        late["fixed_weights"] = False
    second = grad((first[0] * direction.to(dtype)).sum(), (*leaves, gradient))
    names = ("y", "dx", "dw", "dbias", "ddx", "ddw", "ddbias", "ddgradient")
    return {name: t.detach().cpu() for name, t in zip(names, (y, *first, *second), strict=True)}


def check(b: float, scale: float, mode: str, dtype: torch.dtype, backend: str, device: str, seeds=21) -> None:
    """The errors are at most those of the published layer, for rows whose values are of the size ``scale``."""
    published, budget = Published(24, 20, b=b), Budget()
    states = published.dynamic_multiplication.state, {"fixed_weights": False}
    theirs_late, ours_late = states if mode == "late" else (None, None)

    def reference(x, weight, bias):
        return torch.func.functional_call(published, {"linear.weight": weight, "linear.bias": bias}, (x,))

    def ours(x, weight, bias):
        detach = False if ours_late is None else ours_late
        return bcos_linear(x, weight, bias, b=b, normalize_weights=False, detach=detach, backend=backend)

    for seed in range(seeds):
        torch.manual_seed(seed)
        tensors = torch.randn(9, 24) * scale, torch.randn(20, 24) / 5, torch.randn(20), torch.randn(9, 20)
        tensors = [t.to(dtype) for t in (*tensors, torch.randn(9, 24))]
        truth = derivatives(reference, *tensors, torch.float64, theirs_late)
        theirs = derivatives(reference, *tensors, dtype, theirs_late)
        found = derivatives(ours, *(t.to(device) for t in tensors), dtype, ours_late)
        for what, expected in theirs.items():
            if expected.isfinite().all():
                budget.add(what, found[what], expected, truth[what])
    assert {"dx", "dw", "dbias", "ddw", "ddbias", "ddgradient"} <= budget.rows.keys()
    budget.check()
