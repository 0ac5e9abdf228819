"""What is measured of a layer, and its floor: the least time that this device could need."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .contenders import Contender, Contest
from .workloads import Layer

__all__ = ["MEASURES", "contest", "explanation", "floor", "outputs"]

MEASURES = ("forward", "explanation", "training")
"""Forward without a graph; x's gradient in explanation mode; forward and the gradients of x and w."""


def outputs(module: nn.Module, x: Tensor, grad: Tensor, measure: str) -> tuple[Tensor, ...]:
    """What ``measure`` computes: ``(y,)``, ``(y, dx, dw)`` or, with the scale frozen, ``(y, dx)``."""
    if measure == "forward":
        with torch.no_grad():
            return (module(x),)
    x = x.detach().requires_grad_()
    if measure == "explanation":
        y, explain = explanation(module, x, grad)
        return y.detach(), explain()
    y = module(x)
    return (y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], grad))


def explanation(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """y with the scale frozen, and a call that computes dx of it, as often as it is called."""
    x = x.detach().requires_grad_()
    explaining = hasattr(module, "set_explanation_mode")
    if explaining:
        module.set_explanation_mode(True)
    try:
        y = module(x)
    finally:
        if explaining:
            module.set_explanation_mode(False)
    return y, lambda: torch.autograd.grad(y, x, grad, retain_graph=True)[0]


def contest(
    layer: Layer,
    contenders: dict[str, Contender],
    measure: str,
    like: Tensor | None = None,
    every: int = 1,
    alone: bool = False,
) -> Contest:
    """One measure of one layer on an input of ``like``'s device and dtype.

    ``every`` n-th image (or row) is compared, the others then having a gradient of zero in the check. ``alone``
    times an explanation without its forward.
    """
    x = layer.input(like)
    reference = contenders["reference"].module
    with torch.no_grad():
        grad = torch.randn_like(reference(x))
    sparse = torch.zeros_like(grad)
    sparse[::every] = grad[::every]

    def compared(module: nn.Module) -> list[Tensor]:
        found = outputs(module, x, sparse, measure)
        return [t[::every] if i < 2 else t for i, t in enumerate(found)]

    def exact() -> tuple[Tensor, ...]:
        wide = copy.deepcopy(reference).double()
        return outputs(wide, x[::every].double(), grad[::every].double(), measure)

    def step(module: nn.Module) -> Callable[[], object]:
        if alone and measure == "explanation":
            return explanation(module, x, grad)[1]
        return lambda: outputs(module, x, grad, measure)

    def graph(module: nn.Module) -> Tensor:
        if measure == "explanation":
            return explanation(module, x, grad)[0]
        return module(x.detach().requires_grad_())

    return Contest(contenders, x, measure, exact, compared, step, None if measure == "forward" else graph)


def floor(layer: Layer, measure: str, size: int, rates: dict[str, float], alone: bool = False) -> dict[str, float]:
    """FLOPs, bytes and seconds that the layer needs at least, at the ``rates`` of this device.

    Only the plain layer's products and tensors count, ``size`` bytes a value: forward reads x and w and writes y; dx
    reads dy and w and writes dx; dw reads dy and x and writes dw. Each moves as much and multiplies as often. The time
    is the longer one of bytes ÷ bytes/s and FLOPs ÷ FLOP/s.
    """
    passes = {"forward": 1, "explanation": 1 if alone else 2, "training": 3}[measure]
    filters = layer.out_features * layer.max_out
    values = math.prod(layer.input_shape) + filters * layer.taps + layer.outputs
    flops, moved = passes * 2.0 * layer.outputs * layer.max_out * layer.taps, passes * float(values * size)
    return {"flops": flops, "bytes": moved, "seconds": max(moved / rates["bytes/s"], flops / rates["FLOP/s"])}
