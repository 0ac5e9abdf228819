"""The main job on real images: reference B-cos models as they are and accelerated, side by side.

``python -m bcos_kernels demo`` trains the reference ResNet-18 (small inputs) on scikit-learn's digits twice
from one seed, explains digits and photographs both ways, prints a table and writes a picture.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

__all__ = ["main"]

OPTIONAL = {"rich": "rich", "matplotlib": "matplotlib", "sklearn": "scikit-learn", "einops": "einops"}
"""Module -> distribution of what the demo needs beside the reference package, which has its own import."""


def missing() -> list[str]:
    """Names of the distributions that the demo needs and that cannot be imported."""
    from ..compat import import_reference

    absent = []
    for module, distribution in OPTIONAL.items():
        try:
            importlib.import_module(module)
        except ImportError:
            absent.append(distribution)
    try:
        import_reference()
    except ImportError as error:
        absent.append("torchvision" if (error.name or "").startswith("torchvision") else "bcos")
    return absent


def positive(text: str) -> int:
    """An int of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; ends the process with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bcos_kernels demo", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=4, help="epochs of training on the digits (default 4)")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="picture to write (default demo.png)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and the batches (default 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps and single measurements: does it all run?")
    arguments = parser.parse_args(argv)
    if not arguments.out.absolute().parent.is_dir():
        parser.error(f"--out {arguments.out}: the folder {arguments.out.absolute().parent} does not exist")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the demo with the command line ``argv``; returns the exit status (2: something is missing)."""
    arguments = parse(argv)
    absent = missing()
    if absent:
        message = f"demo needs {', '.join(absent)}, not installed here: pip install 'bcos_kernels[demo]'"
        print(message, file=sys.stderr)
        return 2
    from .run import run

    run(arguments.epochs, arguments.seed, arguments.out, arguments.quick)
    return 0
