"""``python -m benchmarks.launches``: the kernels that a training step starts on a GPU, and the host's time for it.

No GPU is needed. The kernels are those of Triton's candidates that the cost model chooses for a batch, bf16 and
channels_last. They are compiled for ``sm_90`` and handed to a stand-in for the driver, which starts nothing: what is
measured is the time of this package and of Triton on the host, from the choice of the candidate to the driver. Autograd
and the driver come on top of it. Each call is made with one small image, because the host's time does not depend on
sizes. The products of cuDNN and cuBLAS are counted, two for a backward of x and the weight, and take no time here.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

import bcos_kernels as bk
from bcos_kernels.cli.bench.stored import header
from bcos_kernels.cli.bench.workloads import MODELS, network
from bcos_kernels.cli.terminal import at_least
from bcos_kernels.core import choice
from bcos_kernels.gpu import aot
from bcos_kernels.norm import NORM
from bcos_kernels.text import aligned
from bcos_kernels.transform import TRANSFORM
from bcos_kernels.transform.triton import vendor

from .command import Parser, heading
from .networks import NETWORKS, calls_of

__all__ = ["DRIVER", "Started", "main", "started"]

ARCH = "sm_90"
DIRECTIONS = "forward", "training"


class _Counting(aot.Driver):
    """A driver that counts the kernels that it is told to start."""

    count = 0

    def start(self, metadata, *arguments) -> None:
        self.count += 1


DRIVER = _Counting(ARCH)
"""The only one, because Triton keeps what a driver has loaded."""


class Started(NamedTuple):
    """What one direction of a call starts."""

    candidate: str
    kernels: int
    seconds: float
    """Of the host, the median of several calls."""


def started(op, call, direction: str, times: int = 15) -> Started:
    """What the candidate that is predicted to be the fastest starts for ``call``, which is of tensors on a GPU."""
    found = choice.predicted(op, "triton", call, direction)
    first = choice.predicted(op, "triton", call, "forward")
    small = replace(call, x_shape=(1, call.channels, *_smallest(op, call)))
    inputs, grad = small.example(torch.device("cpu"))
    spent, before = [], 0
    with aot.active(DRIVER), mock.patch.multiple(vendor, product=_product, gradients=_gradients):
        saved = op.outputs(*first.candidate.forward(inputs, small, first.tile))
        with choice.choosing(lambda *described: found):
            for _ in range(times + 1):
                before, start = DRIVER.count, time.perf_counter()
                if direction == "forward":
                    op.serve(inputs, small, "triton")
                else:
                    op.serve_backward(grad, inputs, saved, small, False, small.needs(direction), "triton")
                spent.append(time.perf_counter() - start)
    return Started(found.candidate.name, DRIVER.count - before, statistics.median(spent[1:]))


def _smallest(op, call) -> tuple[int, ...]:
    """The smallest image that a call of these options takes; a stride has to divide it where tma walks it."""
    if op is NORM:
        return (2, 2)
    walk = zip(call.kernel, call.dilation, call.stride, strict=True)
    return () if call.is_linear else tuple(max(d * (k - 1) + 1, s) for k, d, s in walk)


def _product(call, x: Tensor, operand: Tensor) -> Tensor:
    """The vendor's product, counted and not computed."""
    DRIVER.count += 1
    size = (1, 1) if call.is_linear else call.out_size
    return x.new_empty((call.batch, call.filters, *size)).contiguous(memory_format=torch.channels_last)


def _gradients(call, u: Tensor, x: Tensor, operand: Tensor, needs) -> tuple:
    """The vendor's products that form gradients, counted and not computed."""
    likes = x, operand, operand[:, 0, 0, 0]
    DRIVER.count += sum(needs[: len(likes)])
    return tuple(torch.empty_like(t) if need else None for t, need in zip(likes, needs, strict=False))


def _row(network: str, kind: str, found: list[dict[str, Started]]) -> tuple[str, ...]:
    """A line of the table: what the calls of one kind start in a step."""
    sides = [[directions[direction] for directions in found] for direction in DIRECTIONS]
    kernels = [sum(one.kernels for one in side) for side in sides]
    seconds = [sum(one.seconds for one in side) for side in sides]
    each = (f"{count / len(found):.1f}" for count in kernels)
    times = (f"{1e3 * s:.1f}" for s in (*seconds, sum(seconds)))
    return network, f"{kind}s", str(len(found)), *each, *times, f"{1e6 * sum(seconds) / sum(kernels):.0f}"


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = Parser(__doc__)
    parser.add_argument("--models", nargs="+", default=NETWORKS, choices=NETWORKS, metavar="NAME", help="(default all)")
    parser.add_argument(
        "--images", type=at_least(1), metavar="N", default=256, help="for which candidates are chosen (default 256)"
    )
    chosen = parser.parsed(argv)
    print(heading(header(chosen.command, {}, {}, ("triton",))))
    print(
        "The layers' and norms' kernels of a training step, for a GPU, and the host's time to start them with a driver"
    )
    print("that starts nothing: no kernel ran.\n")
    rows = [("network", "", "calls", "kernels: forward", "backward", "ms: forward", "backward", "both", "µs a kernel")]
    for name in chosen.models:
        calls = calls_of(bk.accelerate(network(name)), chosen.images, ARCH)
        for kind, op in (("layer", TRANSFORM), ("norm", NORM)):
            made = [c.call for c in calls if c.kind == kind]
            known = {call: {d: started(op, call, d) for d in DIRECTIONS} for call in dict.fromkeys(made)}
            rows.append(_row(MODELS[name][1], kind, [known[call] for call in made]))
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
