"""The contenders of a layer, what is measured of them, and the parity check before anything is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

import bcos_kernels

from .workloads import Layer

__all__ = ["MEASURES", "build", "error", "outputs", "refusal", "timed"]

MEASURES = ("forward", "training", "explanation")
"""Forward without a graph; with the gradients of x and w; with x's alone in explanation mode."""


def build(layer: Layer, compile_too: bool) -> dict[str, nn.Module]:
    """Contender name -> module; all B-cos ones hold equal weights, the compiled one the reference's own."""
    reference = layer.reference()
    contenders = {
        "plain": layer.plain(),
        "reference": reference,
        "ours": bcos_kernels.accelerate(copy.deepcopy(reference)),
    }
    if compile_too:
        contenders["compiled"] = torch.compile(copy.deepcopy(reference), dynamic=False)
    return contenders


def outputs(module: nn.Module, x: Tensor, grad: Tensor, measure: str) -> tuple[Tensor, ...]:
    """What ``measure`` computes: ``(y,)``, ``(y, dx, dw)`` or, with the scale frozen, ``(y, dx)``."""
    if measure == "forward":
        with torch.no_grad():
            return (module(x),)
    explaining = measure == "explanation" and hasattr(module, "set_explanation_mode")
    if explaining:
        module.set_explanation_mode(True)
    try:
        x = x.detach().requires_grad_()
        y = module(x)
        wanted = [x] if measure == "explanation" else [x, *module.parameters()]
        return (y.detach(), *torch.autograd.grad(y, wanted, grad))
    finally:
        if explaining:
            module.set_explanation_mode(False)


def error(computed: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Error of each tensor in the 2-norm, relative to the exact one's; the largest entry's is chance."""
    pairs = zip(computed, exact, strict=True)
    return [((c.double() - e).norm() / e.norm()).item() for c, e in pairs]


def refusal(own: Iterable[float], reference: Iterable[float], dtype: torch.dtype) -> str | None:
    """Why a contender with errors ``own`` is not timed: one is above 1.1 times the reference's plus 1 ulp."""
    ulp = torch.finfo(dtype).eps
    for i, (mine, bound) in enumerate(zip(own, (1.1 * e + ulp for e in reference), strict=True)):
        if not mine <= bound:  # also when it is NaN
            return f"relative error {mine:.1e} of output {i} is above {bound:.1e}"
    return None


def timed(
    layer: Layer, contenders: dict[str, nn.Module], measure: str
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """``(calls, refused)``: calls of the contenders as exact as the reference, reasons for the others.

    The plain layer computes something else, so it has nothing to be compared with.
    """
    x = layer.input()
    with torch.no_grad():
        grad = torch.randn_like(contenders["plain"](x))
    exact = outputs(copy.deepcopy(contenders["reference"]).double(), x.double(), grad.double(), measure)
    bound = error(outputs(contenders["reference"], x, grad, measure), exact)
    calls, refused = {}, {}
    for name, module in contenders.items():
        reason = None
        if name not in ("plain", "reference"):
            reason = refusal(error(outputs(module, x, grad, measure), exact), bound, x.dtype)
        if reason is None:
            calls[name] = lambda m=module: outputs(m, x, grad, measure)
        else:
            refused[name] = reason
    return calls, refused
