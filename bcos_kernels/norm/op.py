"""The op ``bcos_kernels::norm``. The package :mod:`bcos_kernels.norm` registers its backends and candidates."""

from __future__ import annotations

import torch

from ..core import autograd, op
from . import call, reference
from .spec import Inputs, Outputs, Spec

__all__ = ["NORM"]


def _fake(inputs: Inputs, spec: Spec) -> Outputs:
    x = inputs.x
    described = call.of(inputs, spec)
    y = torch.empty_like(x, dtype=spec.out_dtype)
    return Outputs(y, *(x.new_empty(described.statistics_shape, dtype=described.sums) for _ in range(2)))


NORM = op.Op(
    "norm",
    spec=Spec,
    inputs=Inputs,
    outputs=Outputs,
    call=call.of,
    reference=reference.norm,
    fake=_fake,
    added=("bias",),
    returned=3,
)
autograd.register(NORM)
