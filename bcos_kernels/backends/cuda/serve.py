"""A call as :mod:`bcos_kernels.ops` makes it, served by the CUDA kernels in one call of the extension."""

from __future__ import annotations

from torch import Tensor

from .. import cuda
from ..gpu.choice import Choice
from ..gpu.problem import Problem
from ..gpu.tile import CANDIDATES
from .plan import LARGE

__all__ = ["backward", "forward"]


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> tuple:
    """(y, n, l, winner) of x ``[N, C, H, W]``, channels_last, or ``[M, K]``; empty where the problem has none."""
    return cuda.kernels.forward(x, weight, bias, b, p.geometry, p.formula_arguments, p.out_dtype, _way(p, choice))


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved, explain: bool, needs
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    return cuda.kernels.backward(
        grad, x, weight, b, *saved, p.geometry, p.formula_arguments, explain, needs, _way(p, choice)
    )


def _way(p: Problem, choice: Choice) -> tuple[int, bool, bool]:
    """As the extension takes it: candidate, whether the larger tile, whether tf32 products."""
    return CANDIDATES.index(choice.candidate), choice.tile == LARGE, p.precision == "tf32"
