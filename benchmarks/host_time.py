"""``python -m benchmarks.host_time``: host time per call above the plain layer, on inputs too small to compute on."""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import bcos_kernels
from bcos_kernels.functional import bcos_conv2d, bcos_linear

from .timing import interleave
from .workloads import Layer

__all__ = ["main", "measure", "pairs"]

MEASURES = ("forward without grad", "forward", "forward + backward")
LINEAR, CONV = Layer("tiny", "linear", (4, 8), 8), Layer("tiny", "conv2d", (1, 8, 4, 4), 8, (3, 3), (1, 1), (1, 1))


def pairs(device: str) -> dict[str, tuple[Callable, Callable, Tensor]]:
    """What is timed -> the layer, the plain layer and the input of both."""
    linear, conv = LINEAR.plain().to(device), CONV.plain().to(device)
    own = bcos_kernels.BcosConv2d(8, 8, 3, padding=1, device=device)
    accelerated = bcos_kernels.accelerate(CONV.reference().to(device))
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


def measure(layer: Callable, plain: nn.Module, x: Tensor, seconds: float) -> list[tuple[float, float]]:
    """``(plain, above)`` in µs for each measure: medians, the second one over the differences within a round."""
    found = []
    for name in MEASURES:
        times = interleave({"layer": timed(layer, x, name), "plain": timed(plain, x, name)}, seconds, most=10**5)
        above = [a - b for a, b in zip(times["layer"], times["plain"], strict=True)]
        found.append((1e6 * statistics.median(times["plain"]), 1e6 * statistics.median(above)))
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints a Markdown table, and the device and the versions above it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_time")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure (default 1)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    print(f"{arguments.device} ({name}), torch {torch.__version__}, Python {platform.python_version()}")
    print(f"\n| µs per call above plain (plain) | {' | '.join(MEASURES)} |\n|---|{'---:|' * len(MEASURES)}")
    for what, (layer, plain, x) in pairs(arguments.device).items():
        figures = measure(layer, plain, x, arguments.seconds)
        print(f"| {what} | {' | '.join(f'{above:.1f} ({own:.1f})' for own, above in figures)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
