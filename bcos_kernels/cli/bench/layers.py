"""The measures of a layer, and its floor: the least time that this device could need."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .contenders import Contender, Contest
from .workloads import Workload

__all__ = ["MEASURES", "contest", "explanation", "floor", "outputs"]

MEASURES = ("forward", "explanation", "training")
"""A forward without a graph; dx in explanation mode; a forward with dx and dw."""


def outputs(module: nn.Module, x: Tensor, grad: Tensor, measure: str) -> tuple[Tensor, ...]:
    """What ``measure`` computes: ``(y,)``, with the scale frozen ``(y, dx)``, or for training ``(y, dx, dw)``."""
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
    """y with the scale frozen, and a function that computes its dx each time it is called."""
    x = x.detach().requires_grad_()
    explaining: Callable[[bool], object] | None = getattr(module, "set_explanation_mode", None)
    if explaining is not None:
        explaining(True)
    try:
        y = module(x)
    finally:
        if explaining is not None:
            explaining(False)
    return y, lambda: torch.autograd.grad(y, x, grad, retain_graph=True)[0]


def contest(
    layer: Workload,
    contenders: dict[str, Contender],
    measure: str,
    like: Tensor | None = None,
    every: int = 1,
    alone: bool = False,
) -> Contest:
    """One measure of one layer on an input of ``like``'s device and dtype.

    The check compares every ``every``-th image (or row), and gives the others a gradient of zero. With ``alone`` an
    explanation is timed without its forward.
    """
    for contender in contenders.values():
        contender.module.train(measure == "training")  # a norm takes its running statistics otherwise
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


def floor(layer: Workload, measure: str, size: int, rates: dict[str, float], alone: bool = False) -> dict[str, float]:
    """FLOPs, bytes and seconds that the layer needs at least, at the ``rates`` of this device.

    Only the products and the tensors of the plain module count, ``size`` bytes a value: the forward reads x and w and
    writes y; dx reads dy and w and writes dx; dw reads dy and x and writes dw. All three move as many bytes and have as
    many products. The time is the larger of bytes ÷ bytes/s and FLOPs ÷ FLOP/s.
    """
    passes = {"forward": 1, "explanation": 1 if alone else 2, "training": 3}[measure]
    flops, moved = passes * 2.0 * layer.products, passes * float(layer.values * size)
    return {"flops": flops, "bytes": moved, "seconds": max(moved / rates["bytes/s"], flops / rates["FLOP/s"])}
