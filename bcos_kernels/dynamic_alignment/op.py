"""The op ``bcos_kernels::dynamic_alignment``. The package registers its backends and candidates."""

from __future__ import annotations

import torch

from ..core import autograd, op
from ..core.formats import memory_format
from . import call, reference, second
from .spec import Inputs, Outputs, Spec

__all__ = ["DYNAMIC_ALIGNMENT"]


def _fake(inputs: Inputs, spec: Spec) -> Outputs:
    x, described = inputs.x, call.of(inputs, spec)
    shape = (x.shape[0], described.outputs, *described.size)
    y = x.new_empty(shape).contiguous(memory_format=memory_format(x))
    norm = x.new_empty((described.outputs, described.pixels), dtype=described.sums)
    return Outputs(y, norm, norm.new_empty(0) if spec.detach else torch.empty_like(norm))


DYNAMIC_ALIGNMENT = op.Op(
    "dynamic_alignment",
    spec=Spec,
    inputs=Inputs,
    outputs=Outputs,
    call=call.of,
    reference=reference.dynamic_alignment,
    fake=_fake,
    second_in_parts=second.second,
    flops=lambda call, needs: call.flops * (1 if needs is None else needs[1] + needs[2]),
)
autograd.register(DYNAMIC_ALIGNMENT)
