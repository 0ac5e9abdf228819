"""The compiled CPU kernels. l = x * w/|w| + bias, y = (|l|/n + cos_eps)^(b-1) l (Böhle et al., CVPR 2022, eq. 3).

Tensors are float32, float64 or bfloat16 on the CPU; ValueError and TypeError name the argument that is not allowed.
Of the four outputs (y, n, l, winner) those that the formula does not produce are empty.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TypedDict

import torch
from torch import Tensor

cuda: ModuleType
"""Of builds with CUDA alone: ``forward`` and ``backward`` of :mod:`bcos_kernels.backends.cuda`, and the GPUs served."""

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    isa_clones: str
    openmp: bool
    cuda: bool

def build_info() -> BuildInfo:
    """Facts of the build: the torch it was built for, the compiler, the instruction sets it carries code for."""

def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    max_out: int,
    exponent: float,
    unit: bool,
    eps_inside: float,
    eps_outside: float,
    cos_eps: float,
    exact_two: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [N, C, H, W], weight [O*M, C/G, kh, kw] -> y [N, O, OH, OW], n [N, G, OH, OW], l as y, winner uint8 as y.

    ``b`` (one element) overrides ``exponent``; ``exact_two`` drops ``cos_eps`` at b = 2. n is fp32 (fp64 for fp64)
    and not produced for b = 1 and depthwise layers; l is for b other than 1 and 2 and for b as a tensor, winner for
    max_out > 1.
    """

def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    b: Tensor | None,
    y: Tensor | None,
    n: Tensor,
    l: Tensor,
    winner: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    max_out: int,
    exponent: float,
    unit: bool,
    eps_inside: float,
    eps_outside: float,
    cos_eps: float,
    exact_two: bool,
    explain: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (dx, dweight, dbias, db), each in its input's shape and dtype (dbias in the weight's), where ``needs``.

    ``explain`` takes the scale as a constant (explanation mode). y is read for b = 2 only.
    """

def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b: Tensor | None,
    max_out: int,
    exponent: float,
    unit: bool,
    eps_inside: float,
    eps_outside: float,
    cos_eps: float,
    exact_two: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [P, K], weight [O*M, K] -> y [P, O], n [P, 1], l as y, winner uint8 as y; otherwise as ``conv2d``."""

def linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    b: Tensor | None,
    y: Tensor | None,
    n: Tensor,
    l: Tensor,
    winner: Tensor,
    max_out: int,
    exponent: float,
    unit: bool,
    eps_inside: float,
    eps_outside: float,
    cos_eps: float,
    exact_two: bool,
    explain: bool,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As ``conv2d_backward``."""

def patch_norm(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    eps_inside: float,
    eps_outside: float,
) -> Tensor:
    """[N, C, H, W] -> [N, G, OH, OW]: sqrt(sum of squares of a group's padded patch + eps_inside) + eps_outside."""

def weight_norm(weight: Tensor) -> Tensor:
    """weight [filters, ...] -> |w| [filters], fp32 (fp64 for fp64)."""
