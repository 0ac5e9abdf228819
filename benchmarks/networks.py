"""``python -m benchmarks.networks``: the training step of whole networks as the cost model of a GPU **predicts** it.

Nothing is measured and no GPU is needed. A network's layers and norms are found by running it once; the times of their
kernels, in bf16 and channels_last, are added up: those of the fastest candidates, with the plans that ``tune`` lets
cuDNN compile, and with ``pairs=True`` those of layers that apply the map of the norm behind them. Beside them stands
the network of plain layers in eager PyTorch: the products, BatchNorm in two passes each way, and ReLU. What both have,
such as pooling and additions, is left out.

``--bounds`` shows what two further fusions, which are not built, would save of our step at most.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

import bcos_kernels as bk
from bcos_kernels.adopt.accelerate import plan_of
from bcos_kernels.cli.bench.models import plain
from bcos_kernels.cli.bench.stored import header
from bcos_kernels.cli.bench.workloads import IMAGE, MODELS, network
from bcos_kernels.cli.terminal import at_least
from bcos_kernels.gpu.cost import Kernel, rates
from bcos_kernels.norm import NORM
from bcos_kernels.text import aligned
from bcos_kernels.transform import TRANSFORM, traffic

from .command import Parser, heading

__all__ = ["NETWORKS", "Step", "calls_of", "main", "predicted", "saved_by_squares"]

NETWORKS = ("resnet50", "resnext50", "densenet121", "vgg11")
"""Those whose norms are over the batch, of which the plain network is known to the byte."""
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BACKENDS = "cuda,triton"


class Step(NamedTuple):
    """The predicted seconds of a training step."""

    plain: float
    ours: float
    pairs: float


class Bounds(NamedTuple):
    """The predicted seconds of a step that a fusion would save if it cost nothing."""

    statistics: float
    """The products add up the statistics of their outputs, so that the norm behind one does not read it for them."""
    squares: float
    """A norm hands on Σ_c y² of every pixel, so that no kernel beside the product of a layer behind it reads y."""


class _Call(NamedTuple):
    """One call of a layer or a norm."""

    kind: str
    call: Any
    x: tuple[int, int]
    """The identity and the version of the input: one that was changed in place is another."""
    y: tuple[int, int]


def calls_of(model: nn.Module, images: int, arch: str) -> list[_Call]:
    """The calls of the accelerated layers and norms of ``model`` on a batch of bf16 images on a GPU."""
    found: list[_Call] = []
    kept = []  # alive, so that no identity is used twice

    def seen(module: Any, inputs: tuple, y: torch.Tensor) -> None:
        plan: Any = plan_of(module)
        (x,), half = inputs, torch.bfloat16
        call = plan.kind.call(module, plan.find(module))
        shape = (images, *x.shape[1:])
        common = {"spec": replace(call.spec, out_dtype=half), "device": "cuda", "x_shape": shape, "dtype": half}
        call = replace(call, **common, arch=arch)
        call = (
            replace(call, weight_dtype=half) if plan.name == "layer" else replace(call, given=False, channels_last=True)
        )
        found.append(_Call(plan.name, call, (id(x), x._version), (id(y), y._version)))
        kept.extend((x, y))

    served = [module for module in model.modules() if getattr(plan_of(module), "name", None) in ("layer", "norm")]
    _run_with_hooks(model, served, seen)
    return found


def _run_with_hooks(model: nn.Module, modules: Iterable[nn.Module], seen: Callable) -> None:
    hooks = [module.register_forward_hook(seen) for module in modules]
    with torch.no_grad():
        model.eval()(torch.rand(1, 6, IMAGE, IMAGE))
    for hook in hooks:
        hook.remove()


def _fastest(op, call, direction: str, among: Callable = lambda candidate: True) -> float:
    candidates = (c for c in op.candidates_of(BACKENDS) if c.can_serve(call, direction) and among(c))
    return min(candidate.cost(call, direction) for candidate in candidates)


def _ours(calls: list[_Call], pairs: bool) -> Iterator[float]:
    outputs = {call.y for call in calls if call.kind == "layer" and call.call.takes_gradient_map}
    paired = {call.x for call in calls if call.kind == "norm" and call.call.has_gradient_map and call.x in outputs}
    for kind, call, x, y in calls:
        op, takes = TRANSFORM if kind == "layer" else NORM, pairs and y in paired
        yield _fastest(op, call, "forward")
        yield _fastest(op, call, "training", (lambda c: c.takes_gradient_map) if takes else lambda c: True)
        if pairs and kind == "norm" and x in paired:  # a kernel of C values in place of the pass that writes dx
            values = prod(call.x_shape) * call.dtype.itemsize
            reached = rates(call.arch)
            yield reached.seconds(Kernel(0), reached.fp32) - reached.seconds(Kernel(3 * values), reached.fp32)


def _plain(calls: list[_Call], model: nn.Module, images: int, arch: str) -> Iterator[float]:
    """The products of the layers, and the passes of the norms and activations that the standard network has."""
    for call in calls:
        if call.kind == "layer":
            yield from (traffic.plain_seconds(call.call, direction) for direction in ("forward", "training"))
    passes: list[tuple[int, int]] = []  # values, and how often they are read or written in each kernel

    def seen(module: nn.Module, inputs: tuple, y: torch.Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d):
            passes.extend((images * y.numel(), times) for times in (1, 2, 2, 3))
        elif isinstance(module, nn.ReLU):
            passes.extend((images * y.numel(), times) for times in (2, 3))

    _run_with_hooks(model, model.modules(), seen)
    reached = rates(arch)
    for values, times in passes:
        yield reached.seconds(Kernel(values * times * torch.bfloat16.itemsize), reached.fp32)


def predicted(name: str, images: int, arch: str) -> Step:
    """The step of one of ``NETWORKS``."""
    calls = calls_of(bk.accelerate(network(name)), images, arch)
    standard = sum(_plain(calls, plain(name, IMAGE), images, arch))
    return Step(standard, *(sum(_ours(calls, pairs)) for pairs in (False, True)))


def bounds(calls: list[_Call], arch: str) -> Bounds:
    """What the two fusions would save."""
    reached = rates(arch)
    made = {kind: {call.y for call in calls if call.kind == kind} for kind in ("layer", "norm")}

    def seconds(moved: float) -> float:
        return reached.seconds(Kernel(moved), reached.fp32)

    reads = [c.call for c in calls if c.kind == "norm" and c.x in made["layer"] and not c.call.given]
    behind = [c.call for c in calls if c.kind == "layer" and c.x in made["norm"]]
    return Bounds(
        sum(seconds(prod(call.x_shape) * call.dtype.itemsize) for call in reads),
        sum(saved_by_squares(call) for call in behind),
    )


def saved_by_squares(call) -> float:
    """What a forward of ``graph`` saves that is given Σ x² of every pixel, against the fastest that is not."""
    s, fastest = traffic.Sizes(call), _fastest(TRANSFORM, call, "forward")
    given = [
        graph.cost(call, "forward") - (s.seen - s.squares) / rates(call.arch).bytes
        for graph in TRANSFORM.candidates_of("cuda")
        if graph.name == "graph" and graph.can_serve(call, "forward")
    ]
    return fastest - min([fastest, *given])


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--models", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NAME", help="(default all)")
    allowed = f"of {', '.join(ARCHITECTURES)} (default sm_90)"
    parser.add_argument("--arch", nargs="+", default=["sm_90"], choices=ARCHITECTURES, metavar="ARCH", help=allowed)
    parser.add_argument("--images", type=at_least(1), metavar="N", default=256, help="of a step (default 256)")
    parser.add_argument("--bounds", action="store_true", help="what fusions that are not built would save")
    chosen = parser.parsed(argv)
    print(heading(header(chosen.command, {}, {})))
    print(f"Predicted, not measured: a training step, bf16, channels_last, {chosen.images} images.\n")
    rows = [("network", "GPU", "plain ms", "ours ms", "÷ plain", "pairs ms", "÷ plain", "÷ ours")]
    for arch in chosen.arch:
        for name in chosen.models:
            step = predicted(name, chosen.images, arch)
            ratios = step.ours / step.plain, step.pairs / step.plain, step.pairs / step.ours
            times = [f"{1e3 * seconds:.1f}" for seconds in step]
            ours, pairs, gained = (f"{ratio:.2f}" for ratio in ratios)
            rows.append((MODELS[name][1], arch, times[0], times[1], ours, times[2], pairs, gained))
    print(aligned(rows))
    if chosen.bounds:
        print(f"\n{_table_of_bounds(chosen.models, chosen.images, chosen.arch)}")
    return 0


def _table_of_bounds(models: Iterable[str], images: int, architectures: Iterable[str]) -> str:
    rows = [("network", "GPU", "ours ms", "statistics ms", "of ours", "squares ms", "of ours")]
    for arch in architectures:
        for name in models:
            calls = calls_of(bk.accelerate(network(name)), images, arch)
            ours, saved = sum(_ours(calls, False)), bounds(calls, arch)
            columns = (f"{1e3 * s:.2f}" if i == 0 else f"{s / ours:.1%}" for s in saved for i in range(2))
            rows.append((MODELS[name][1], arch, f"{1e3 * ours:.1f}", *columns))
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
