"""The contenders of a layer, what is measured of them, and the parity check before anything is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

import bcos_kernels

from .workloads import Layer

__all__ = ["MEASURES", "build", "error", "explanation", "forced", "outputs", "refusal", "timed"]

MEASURES = ("forward", "training", "explanation")
"""Forward without a graph; with the gradients of x and w; with x's alone in explanation mode."""


def build(
    layer: Layer, compile_too: bool, like: Tensor | None = None, candidates: Iterable[str] = ()
) -> dict[str, nn.Module]:
    """Contender name -> module of ``like``'s device and dtype; on the CPU in fp32 without.

    All B-cos ones hold equal weights, the compiled one the reference's own. ``candidates`` are copies that the Triton
    backend serves, each to be run within :func:`forced`.
    """
    like = torch.empty(0) if like is None else like
    reference, plain = (module.to(like.device, like.dtype) for module in (layer.reference(), layer.plain()))
    contenders = {
        "plain": plain,
        "reference": reference,
        "ours": bcos_kernels.accelerate(copy.deepcopy(reference)),
    }
    for name in candidates:
        contenders[name] = bcos_kernels.accelerate(copy.deepcopy(reference), backend="triton")
    if compile_too:
        contenders["compiled"] = torch.compile(copy.deepcopy(reference), dynamic=False)
    return contenders


@contextmanager
def forced(candidate: str | None) -> Iterator[dict[str, object]]:
    """Within the context the Triton backend serves every call by ``candidate``, or by the first that there is.

    None leaves the choice alone. Yields what was chosen, direction -> ``(problem, choice)``.
    """
    from bcos_kernels.backends.triton import layer, plan

    chosen, choose = {}, layer.choose

    def note(p, direction: str):
        served = plan.candidates(p, direction)
        choice = choose(p, direction)
        if candidate is not None:
            choice = plan.Choice(candidate if candidate in served else served[0], None, "forced")
        chosen[direction] = p, choice
        return choice

    with layer.choosing(note):
        yield chosen


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
    layer: Layer,
    contenders: dict[str, nn.Module],
    measure: str,
    like: Tensor | None = None,
    every: int = 1,
    alone: bool = False,
    around: Callable[[str], AbstractContextManager] = lambda name: nullcontext(),
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """``(calls, refused)``: calls of the contenders as exact as the reference, reasons for the others.

    The plain layer computes something else, so it has nothing to be compared with. ``every`` n-th image (or row) is
    compared, the others then having a gradient of zero in the check. ``alone`` times an explanation without its
    forward. A contender runs within ``around(name)``.
    """
    x = layer.input(like)
    with torch.no_grad():
        grad = torch.randn_like(contenders["plain"](x))
    sparse = torch.zeros_like(grad)
    sparse[::every] = grad[::every]

    def compared(module: nn.Module) -> list[Tensor]:
        found = outputs(module, x, sparse, measure)
        return [t[::every] if i < 2 else t for i, t in enumerate(found)]

    wide = copy.deepcopy(contenders["reference"]).double()
    exact = outputs(wide, x[::every].double(), grad[::every].double(), measure)
    bound = error(compared(contenders["reference"]), exact)
    calls, refused = {}, {}
    for name, module in contenders.items():
        reason = None
        if name not in ("plain", "reference"):
            try:
                with around(name):
                    reason = refusal(error(compared(module), exact), bound, x.dtype)
            except Exception as failure:  # one contender's; the others are timed
                reason = f"{type(failure).__name__}: {str(failure).strip()[:300]}"
        if reason is None:
            with around(name):
                step = explanation(module, x, grad)[1] if alone and measure == "explanation" else None
            calls[name] = partial(_within, around, name, step or partial(outputs, module, x, grad, measure))
        else:
            refused[name] = reason
    return calls, refused


def _within(around: Callable[[str], AbstractContextManager], name: str, step: Callable[[], object]) -> object:
    with around(name):
        return step()
