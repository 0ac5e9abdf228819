"""The sampled candidates, for 1×1 convolutions with a stride: others with stride 1 serve the pixels that are seen.

Those pixels are copied; the others are neither read nor multiplied, and dx is 0 there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ...core.candidate import Candidate
from ...core.formats import CHANNELS_LAST, channels_last
from ...gpu.cost import Kernel, rates
from ..call import Call
from ..layout import candidate
from ..traffic import Sizes
from . import graph, tma, vendor

__all__ = ["CANDIDATES"]


def _is_sampled(call: Call) -> bool:
    return call.taps == 1 and max(call.stride) > 1 and not any(call.padding) and not call.spec.border


@lru_cache(maxsize=4096)
def _of_samples(call: Call) -> Call:
    """The call of the pixels that are seen."""
    spec = replace(call.spec, stride=(1,) * len(call.stride))
    return replace(call, spec=spec, x_shape=(*call.x_shape[:2], *call.out_size))


def _samples(t: Tensor, call: Call) -> Tensor:
    """The view of the pixels that are seen."""
    for axis, step in enumerate(call.stride, start=2):
        t = t[(slice(None),) * axis + (slice(None, None, step),)]
    return t


def _copying(call: Call, direction: str) -> float:
    """The predicted seconds of the copies: of the pixels that are seen, and of their gradients among zeros."""
    all_pixels, seen, reached = Sizes(call).x, Sizes(_of_samples(call)).x, rates(call.arch)
    copies = [Kernel(2 * seen)] + [Kernel(all_pixels), Kernel(2 * seen)] * (direction != "forward")
    return sum(reached.seconds(kernel, reached.fp32) for kernel in copies)


def _serves(own: Candidate, call: Call, direction: str) -> bool:
    """Whether ``own`` serves the pixels that are seen; not where it is ``tma`` and walks the stride without a copy."""
    walks = own is tma.TMA and own.can_serve(call, direction)
    return _is_sampled(call) and own.can_serve(_of_samples(call), direction) and not walks


def _with_samples(own: Candidate) -> Candidate:
    """The candidate that serves a call by ``own`` on the pixels that are seen."""

    def forward(inputs, call: Call, tile) -> tuple[Tensor, ...]:
        assert own.forward is not None
        seen = channels_last(_samples(inputs.x, call))
        return own.forward(inputs._replace(x=seen), _of_samples(call), tile)

    def backward(grad, inputs, saved, call: Call, *rest, **options) -> tuple[Tensor | None, ...]:
        seen = channels_last(_samples(inputs.x, call))
        found, *others = own.backward(grad, inputs._replace(x=seen), saved, _of_samples(call), *rest, **options)
        if found is None:
            return None, *others
        dx = torch.zeros_like(inputs.x, memory_format=CHANNELS_LAST[inputs.x.dim()])
        _samples(dx, call).copy_(found)
        return dx, *others

    facts: dict[str, Any] = {"takes_gradient_map": own.takes_gradient_map}
    if own.has_tiles:
        facts["tiles"] = lambda call, direction: own.tiles(_of_samples(call), direction)
    if own.compiles:
        facts["refusal"] = lambda call, direction, *compiles: own.refusal(_of_samples(call), direction, *compiles)
    return candidate(
        own.backend, f"sampled-{own.name}", forward, backward,
        serves=partial(_serves, own),
        cost=lambda call, direction: own.cost(_of_samples(call), direction) + _copying(call, direction),
        **facts,
    )  # fmt: skip


CANDIDATES = tuple(map(_with_samples, (tma.TMA, *graph.CANDIDATES, *vendor.CANDIDATES)))
