"""The op ``bcos_kernels::transform``: the B-cos transform of linear and convolutional layers.

The package :mod:`bcos_kernels.transform` registers its backends and candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import autograd, op
from ..core.candidate import Backend
from . import call, reference
from .spec import Inputs, Outputs, Spec

__all__ = ["REFERENCE", "TRANSFORM"]


def _fake(inputs: Inputs, spec: Spec) -> Outputs:
    x, weight, *_ = inputs
    if spec.is_linear:
        z, norm_shape, saves_norm = x.new_empty(x.shape[0], weight.shape[0]), (x.shape[0], 1), True
    else:
        geometry = (spec.stride, spec.padding, spec.dilation, False, [0, 0], spec.groups)
        z = torch.ops.aten.convolution(x, weight.to(x.dtype), None, *geometry)
        norm_shape = (x.shape[0], spec.groups, *z.shape[2:])
        saves_norm = spec.groups == 1 or weight.shape[1] > 1
    layout = _memory_format(z)
    y_shape = (z.shape[0], weight.shape[0] // spec.max_out, *z.shape[2:])
    y = x.new_empty(y_shape, dtype=spec.out_dtype).contiguous(memory_format=layout)
    n = x.new_empty((0,), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    if saves_norm and spec.power != 1:
        n = n.new_empty(norm_shape).contiguous(memory_format=layout)
    l = torch.empty_like(y) if spec.power == 0 else y.new_empty(0)  # noqa: E741
    winner = torch.empty_like(y, dtype=torch.uint8) if spec.max_out > 1 else y.new_empty(0, dtype=torch.uint8)
    return Outputs(y, n, l, winner)


def _memory_format(t: Tensor) -> torch.memory_format:
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


TRANSFORM = op.Op(
    "transform",
    spec=Spec,
    inputs=Inputs,
    outputs=Outputs,
    call=call.of,
    reference=reference.transform,
    fake=_fake,
    batches=True,
)
autograd.register(TRANSFORM)

REFERENCE = Backend("reference", why_not=lambda call: [])
"""The backend in plain PyTorch, which serves every valid call on every device."""
