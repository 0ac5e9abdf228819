"""``python -m benchmarks.host_time``: host time per call above the plain layer, on inputs too small to compute on."""

from __future__ import annotations

import platform

import torch

from bcos_kernels.cli.bench.devices import opened
from bcos_kernels.cli.bench.host import MEASURES, measure, pairs
from bcos_kernels.cli.terminal import at_least

from .command import Parser

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Prints a Markdown table, and the device and the versions above it."""
    parser = Parser(__doc__)
    parser.add_argument("--seconds", type=at_least(0, float), metavar="S", default=1.0, help="each figure (default 1)")
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", metavar="D", default=usual, help=f"(default {usual})")
    arguments = parser.parse_args(argv)
    try:
        name = opened(arguments.device).describe()["device"]
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    print(f"{arguments.device} ({name}), torch {torch.__version__}, Python {platform.python_version()}")
    print(f"\n| µs per call above plain (plain) | {' | '.join(MEASURES)} |\n|---|{'---:|' * len(MEASURES)}")
    for what, (layer, plain, x) in pairs(arguments.device).items():
        figures = measure(layer, plain, x, arguments.seconds)
        print(f"| {what} | {' | '.join(f'{above:.1f} ({own:.1f})' for own, above in figures)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
