"""``python -m benchmarks.alignments``: dynamic alignment layers as the cost model of a GPU **predicts** them.

Nothing is measured and no GPU is needed. For every layer of the bench's CoDA-Nets stand the microseconds of the kernels
of one direction, and their ratio to the floor: the factored form at the vendor's rate, each tensor moved once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from bcos_kernels.cli.bench.coda import CODA_NETS
from bcos_kernels.cli.terminal import DTYPES, at_least
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.dynamic_alignment import Call, Spec, traffic
from bcos_kernels.text import aligned

from .command import Parser

__all__ = ["calls", "main", "rows"]

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
COSTS = {"triton": traffic.cost, "cuda": traffic.cuda_cost}
IMAGES = {"coda_cifar10": 256, "coda_imagenet": 32}
"""Network -> images at once, with which a GPU has enough to do."""


def calls(name: str, images: int, arch: str, dtype: torch.dtype, norm: str = "squash") -> Iterator[Call]:
    """The call of each layer of a network of ``CODA_NETS`` on a GPU; in fp32 with products of tf32."""
    net = CODA_NETS[name]
    channels, size = 6, (net.image, net.image)
    for outputs, rank, k, step in zip(net.outputs, net.ranks, net.kernels, net.strides, strict=True):
        spec, shape = Spec((k, k), (step, step), (k // 2, k // 2), norm), (images, channels, *size)
        tf32 = dtype == torch.float32
        call = Call(spec, "cuda", shape, rank, outputs, dtype, True, tf32, arch=arch)
        yield call
        channels, size = outputs, call.size


def rows(
    name: str, images: int, arch: str, dtype: torch.dtype, backend: str = "triton"
) -> Iterator[tuple[str, dict[str, tuple[float, float]]]]:
    """Of each layer, and of all of them: direction -> the predicted seconds, and those of the floor."""
    total = dict.fromkeys(DIRECTIONS, (0.0, 0.0))
    for call in calls(name, images, arch, dtype):
        times = {d: (COSTS[backend](call, d), traffic.floor(call, d)) for d in DIRECTIONS}
        total = {d: (total[d][0] + times[d][0], total[d][1] + times[d][1]) for d in DIRECTIONS}
        _, channels, height, width = call.x_shape
        kernel = "x".join(map(str, call.spec.kernel))
        yield f"{height}x{width}, {channels} to {call.outputs}, k{kernel} s{call.spec.stride[0]} r{call.rank}", times
    yield "all layers", total


def main(argv: list[str] | None = None) -> int:
    """Prints a table for each network; returns 0."""
    parser = Parser(__doc__)
    parser.add_argument("--arch", default="sm_90", choices=ARCHITECTURES, help="(default sm_90)")
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES), help="(default bf16)")
    parser.add_argument("--backend", default="triton", choices=list(COSTS), help="whose kernels (default triton)")
    usual = ", ".join(f"{images} of {name}" for name, images in IMAGES.items())
    parser.add_argument("--images", type=at_least(1), metavar="N", help=f"images at once (default {usual})")
    options = parser.parsed(argv)
    print(f"`{options.command}`\npredicted by the cost model, not measured: microseconds (and times the floor)")
    for name in CODA_NETS:
        images = options.images or IMAGES[name]
        print(f"\n{CODA_NETS[name].title}, {options.arch}, {options.dtype}, {images} images")
        table = [("layer", *DIRECTIONS)]
        for layer, times in rows(name, images, options.arch, DTYPES[options.dtype], options.backend):
            table.append((layer, *(f"{1e6 * ours:.0f} ({ours / floor:.2f})" for ours, floor in times.values())))
        print(aligned(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
