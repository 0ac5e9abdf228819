"""``python -m bcos_kernels demo``: reference B-cos models on real images, as they are and accelerated.

It trains the reference ResNet-18 (small inputs) on scikit-learn's digits, twice from one seed: with the reference's
layers and with accelerated ones. Both explain digits and a photograph. Then it converts a plain network and fine-tunes
it on patches of two photographs. It prints a table and writes a picture.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ..terminal import at_least, installing, refused, unwritable

__all__ = ["configure", "main"]

OPTIONAL = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "einops": "einops"}
"""Module -> distribution, for everything that the demo needs beside torch and the reference package."""


def missing() -> list[str]:
    """Names of the needed distributions that cannot be imported."""
    from ...compat import import_reference

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


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compares reference B-cos models on real images with accelerated ones."
    parser.add_argument("--epochs", metavar="N", type=at_least(1), default=4, help="epochs of training (default 4)")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("demo.png"), help="picture (default demo.png)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of weights and batches (default 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps and single measurements: does it all run?")


def main(options: argparse.Namespace) -> int:
    """Runs the demo; returns the exit status, which is 2 where something that it needs is missing."""
    if reason := unwritable(options.out):
        options.error(f"--out {options.out}: {reason}")
    absent = missing()
    if absent:
        return refused("demo", f"needs {', '.join(absent)}, not installed here: {installing('demo')}")
    from .picture import ENDINGS

    if options.out.suffix[1:] not in ENDINGS:
        options.error(f"--out {options.out}: names that end with {', '.join(ENDINGS)} are allowed")
    from .run import run

    run(options.epochs, options.seed, options.out, options.quick)
    return 0
