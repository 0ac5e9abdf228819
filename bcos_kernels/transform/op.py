"""The op ``bcos_kernels::transform``: the B-cos transform of linear and convolutional layers.

The package :mod:`bcos_kernels.transform` registers its backends and candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import autograd, op
from ..core.formats import suggested, suggests_channels_last
from . import call, reference
from .spec import Inputs, Outputs, Spec

__all__ = ["TRANSFORM"]


def _fake(inputs: Inputs, spec: Spec) -> Outputs:
    x, weight, *_ = inputs
    described = call.of(inputs, spec)
    like = weight if suggests_channels_last(weight) else x
    if spec.is_linear:
        z = x.new_empty(x.shape[0], weight.shape[0])
    else:
        geometry = (spec.stride, spec.padding, spec.dilation, False, [0] * len(spec.stride), spec.groups)
        z = torch.ops.aten.convolution(x, weight.to(x.dtype), None, *geometry)

    def fresh(channels: int, dtype: torch.dtype, exists: bool = True) -> Tensor:
        if not exists:
            return x.new_empty(0, dtype=dtype)
        shape = (z.shape[0], channels, *z.shape[2:])
        return x.new_empty(shape, dtype=dtype).contiguous(memory_format=suggested(like))

    return Outputs(
        fresh(described.outputs, spec.out_dtype),
        fresh(spec.groups, described.sums, described.saves_norm),
        fresh(described.outputs, spec.out_dtype, described.saves_linear),
        fresh(described.outputs, torch.uint8, spec.max_out > 1),
    )


TRANSFORM = op.Op(
    "transform",
    spec=Spec,
    inputs=Inputs,
    outputs=Outputs,
    call=call.of,
    reference=lambda *args: (reference.transform(*args),),
    fake=_fake,
    batches=True,
    scaling=("tensor_b",),
    flops=lambda call, needs: call.flops * (1 if needs is None else needs[0] + needs[1]),
)
autograd.register(TRANSFORM)
