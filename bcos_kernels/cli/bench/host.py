"""Host time of a call above the plain layer's, on inputs too small to compute on."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...adopt import accelerate
from ...functional import bcos_conv2d, bcos_linear
from ...modules import BcosConv2d
from ...transform import Spec
from ..measure import interleave
from .workloads import Layer

__all__ = ["MEASURES", "measure", "pairs", "rows"]

MEASURES = ("forward without grad", "forward", "forward + backward")
LINEAR = Layer("tiny", (4, 8), Spec(), (8, 8))
CONV = Layer("tiny", (1, 8, 4, 4), Spec((1, 1), (1, 1), (1, 1)), (8, 8, 3, 3))


def pairs(device: str) -> dict[str, tuple[Callable, Callable, Tensor]]:
    """Name -> the layer, the plain layer, and the input of both."""
    linear: Any = LINEAR.plain().to(device)
    conv: Any = CONV.plain().to(device)
    own: Any = BcosConv2d(8, 8, 3, padding=1, device=device)
    own.to(memory_format=torch.channels_last)  # as the weights of the plain and of the accelerated layer
    accelerated = accelerate(CONV.reference().to(device))
    row, image = LINEAR.input().to(device), CONV.input().to(device)
    return {
        "bcos_linear": (lambda x: bcos_linear(x, linear.weight), linear, row),
        "bcos_conv2d": (lambda x: bcos_conv2d(x, conv.weight, padding=(1, 1)), conv, image),
        "BcosConv2d": (own, conv, image),
        "accelerated bcos.modules.BcosConv2d": (accelerated, conv, image),
    }


def timed(layer: Callable, x: Tensor, measure: str) -> Callable[[], object]:
    """One call of ``layer`` without a graph, with one, or with the backward of x and of the weight."""
    if measure == "forward without grad":
        return torch.no_grad()(lambda: layer(x))
    x = x.clone().requires_grad_()
    if measure == "forward":
        return lambda: layer(x)
    grad = torch.ones_like(layer(x))
    return lambda: layer(x).backward(grad)


def measure(layer: Callable, plain: Callable, x: Tensor, seconds: float) -> list[tuple[float, float]]:
    """``(plain, above)`` in µs for each measure: the medians of the plain time and of the differences of each round."""
    found = []
    for name in MEASURES:
        times = interleave({"layer": timed(layer, x, name), "plain": timed(plain, x, name)}, seconds, most=10**5)
        above = [a - b for a, b in zip(times["layer"], times["plain"], strict=True)]
        found.append((1e6 * statistics.median(times["plain"]), 1e6 * statistics.median(above)))
    return found


def rows(device: str, seconds: float) -> list[dict]:
    """The figures of all pairs in one thread, as a result stores them: ``layer, measure, plain, above``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = []
        for what, (layer, plain, x) in pairs(device).items():
            figures = zip(MEASURES, measure(layer, plain, x, seconds), strict=True)
            found += [{"layer": what, "measure": m, "plain": own, "above": above} for m, (own, above) in figures]
        return found
    finally:
        torch.set_num_threads(threads)
