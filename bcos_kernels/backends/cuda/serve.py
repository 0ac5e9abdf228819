"""A call as :mod:`bcos_kernels.ops` makes it, served by the CUDA kernels in one call of the extension."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from .. import cuda, extension
from ..gpu.choice import Choice
from ..gpu.problem import Problem
from .plan import LARGE

__all__ = ["backward", "forward"]


def forward(p: Problem, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor | None) -> tuple:
    """(y, n, l, winner) of x ``[N, C, H, W]``, channels_last, or ``[M, K]``; empty where the problem has none."""
    return cuda.kernels.transform_forward(x, weight, bias, b, _spec(p), *_served(p, choice))


def backward(
    p: Problem, choice: Choice, grad: Tensor, x: Tensor, weight: Tensor, b: Tensor | None, saved, explain: bool, needs
) -> tuple[Tensor | None, ...]:
    """(dx, dweight, dbias, db), None where not needed; ``explain`` freezes the scale."""
    return cuda.kernels.transform_backward(grad, x, weight, b, *saved, _spec(p), explain, needs, *_served(p, choice))


@lru_cache(maxsize=4096)
def _spec(p: Problem):
    return extension.transform_spec((*(p.geometry or ()), *p.formula_arguments), p.tensor_b, p.out_dtype)


def _served(p: Problem, choice: Choice) -> tuple[str, bool, bool]:
    """As the extension takes it: candidate, whether the larger tile, whether tf32 products."""
    return choice.candidate, choice.tile == LARGE, p.precision == "tf32"
