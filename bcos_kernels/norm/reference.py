"""The norms in plain PyTorch: every other backend is checked against it. It is differentiable to any order.

Formulas: the package ``bcos`` (Böhle et al., B-cos Alignment, TPAMI 2024, arXiv 2306.10898, section 4.2). Statistics
are formed in fp32 for half-precision inputs.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from operator import getitem

import torch
from torch import Tensor

from ..core.formula import FrozenScale, accumulated
from .spec import Inputs, Outputs, Spec

__all__ = ["norm"]


def norm(inputs: Inputs, spec: Spec, late: MutableMapping | None = None) -> Outputs:
    """y ``[N, C, *positions]`` and the statistics.

    ``late["fixed_weights"]`` is the late explanation mode, read in the backward.
    """
    x, weight, bias, given_mean, given_var = inputs
    members = accumulated(x)
    if given_var is None:
        members, dims = _sharing(members, spec)
        var, mean = torch.var_mean(members, dims, correction=0, keepdim=True)
        statistics = [t.detach().reshape(spec.statistics_shape(x.shape)) for t in (mean, var)]
    else:
        var = _per_channel(accumulated(given_var), x)
        mean = torch.zeros_like(var) if given_mean is None else _per_channel(accumulated(given_mean), x)
        statistics = [var.new_empty(0), var.new_empty(0)]
    std = ((var.detach() if spec.detach else var) + spec.eps).sqrt()
    moved = members - mean if spec.centered else members
    y = moved / std if late is None else FrozenScale.apply(moved, 1 / std, partial(getitem, late, "fixed_weights"))
    y = y.reshape(x.shape)
    if weight is not None:
        y = y * _per_channel(accumulated(weight), x)
    if bias is not None:
        y = y + _per_channel(accumulated(bias), x)
    return Outputs(y.to(spec.out_dtype), *statistics)


def _sharing(x: Tensor, spec: Spec) -> tuple[Tensor, tuple[int, ...]]:
    """x in a shape in which the values that share a statistic fill whole dimensions; and these dimensions."""
    if spec.over == "group":
        x = x.unflatten(1, (spec.groups, -1))
        return x, tuple(range(2, x.dim()))
    dims = {"batch": (0, *range(2, x.dim())), "all": tuple(range(x.dim())), "position": (1,)}
    return x, dims[spec.over]


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.dim() - 2))
