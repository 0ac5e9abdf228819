"""fp16 on the CPU: the kernels of fp32 serve it, on copies of the tensors, and each result is rounded once."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .candidate import Candidate

__all__ = ["through_fp32"]


def through_fp32(own: Candidate, rounded: tuple[int, ...] = (0,), knows_fp16: bool = False) -> Candidate:
    """The candidate ``own``, which then serves calls in fp16 as well.

    ``rounded`` holds the places of the outputs that have the result's dtype; the others have dtypes of their own. One
    that ``knows_fp16`` is told by ``out_dtype`` that its outputs will be rounded to that; what it returns is in fp32.
    """

    @lru_cache(maxsize=4096)
    def wide_call(call):
        """The same call in fp32."""
        dtypes = {f.name: torch.float32 for f in fields(call) if f.name in ("dtype", "weight_dtype")}
        kept = knows_fp16 or not hasattr(call.spec, "out_dtype")
        return replace(call, spec=call.spec if kept else replace(call.spec, out_dtype=torch.float32), **dtypes)

    def forward(inputs, call, tile) -> tuple[Tensor, ...]:
        assert own.forward is not None
        if call.dtype != torch.float16:
            return own.forward(inputs, call, tile)
        outputs = own.forward(_wide(inputs), wide_call(call), tile)
        dtype = getattr(call.spec, "out_dtype", call.dtype)
        return tuple(t.to(dtype) if i in rounded else t for i, t in enumerate(outputs))

    def backward(grad, inputs, saved, call, *rest, **options) -> tuple:
        if call.dtype != torch.float16:
            return own.backward(grad, inputs, saved, call, *rest, **options)
        wide = _wide((grad, inputs, saved))
        found = own.backward(*wide, wide_call(call), *_wide(rest), **_wide(options))
        return _as(found, inputs)

    def second(v, grad, inputs, saved, call, *rest) -> tuple:
        assert own.second is not None
        if call.dtype != torch.float16:
            return own.second(v, grad, inputs, saved, call, *rest)
        found = own.second(*_wide((v, grad, inputs, saved)), wide_call(call), *rest)
        others = (t.to(dtype) for t, (_, dtype) in zip(found[1 + len(inputs) :], call.intermediates, strict=False))
        return *_as(found, (grad, *inputs)), *others

    def gradient_map(grad, inputs, saved, call, *rest) -> tuple:
        assert own.gradient_map is not None
        if call.dtype != torch.float16:
            return own.gradient_map(grad, inputs, saved, call, *rest)
        found = own.gradient_map(_wide(grad), _wide(inputs), _wide(saved), wide_call(call), *_wide(rest))
        return found[0], *_as(found[1:], inputs[1:])

    def kernels(call, by_operators):
        assert own.kernels is not None
        return None if call.dtype == torch.float16 else own.kernels(call, by_operators)

    return replace(
        own,
        forward=forward,
        backward=backward,
        second=own.second and second,
        gradient_map=own.gradient_map and gradient_map,
        kernels=own.kernels and kernels,
    )


def _wide(value: Any) -> Any:
    """The value, with fp32 copies in place of the fp16 tensors that it is or holds."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.float16 else value
    if isinstance(value, dict):
        return {key: _wide(held) for key, held in value.items()}
    if isinstance(value, tuple):
        made = getattr(type(value), "_make", tuple)  # a NamedTuple stays one
        return made(map(_wide, value))
    return value


def _as(found, likes) -> tuple:
    """The tensors in the dtypes of ``likes``."""
    return tuple(t if t is None or like is None else t.to(like.dtype) for t, like in zip(found, likes, strict=False))
