"""The candidate kernels: one pass over x for the statistics and one to apply them, or a single one at positions."""

from __future__ import annotations

from ...core.candidate import Candidate
from .. import traffic, triton
from ..call import Call

__all__ = ["CANDIDATES"]

NAME = "kernels"


def _triton_forward(inputs, call: Call, tile: None):
    return triton.kernels().forward(inputs, call)


def _triton_backward(grad, inputs, saved, call: Call, tile: None, frozen: bool, needs):
    return triton.kernels().backward(grad, inputs, saved, call, frozen, needs)


CANDIDATES = (Candidate("triton", NAME, _triton_forward, _triton_backward, cost=traffic.cost),)
