"""``python -m bcos_kernels run``: an unmodified script, its B-cos layers accelerated as they are built."""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections import Counter

from . import compat, dispatch
from .adopt import accelerate_as_built

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Runs the script or module as ``__main__`` and then prints one line about its layers to stderr."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.target:
        parser.error("a script is needed: run [--backend B] script.py args... or run -m module args...")
    name = options.target[0]
    if options.is_module and not _module_exists(name):
        return _refuse(f"no module named {name!r}")
    if not options.is_module and not os.path.exists(name):
        return _refuse(f"no such script: {name}")
    sys.argv = options.target
    if not options.is_module and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(name))
    _make_bcos_importable()
    with accelerate_as_built(backend=options.backend) as tally:
        try:
            if options.is_module:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        finally:
            sys.stdout.flush()
            print(_summary(tally), file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bcos_kernels run",
        description="Runs a Python script unmodified; every B-cos layer that becomes part of a module is "
        "accelerated. Child processes that the script starts run as they are.",
    )
    parser.add_argument("--backend", choices=dispatch.BACKENDS, help="the backend of every layer")
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module instead of a script")
    parser.add_argument("target", nargs=argparse.REMAINDER, metavar="script.py args...", help="what to run")
    return parser


def _refuse(reason: str) -> int:
    print(f"bcos_kernels run: {reason}", file=sys.stderr)
    return 2


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _make_bcos_importable() -> None:
    """Mends what a torchvision built for another torch breaks, where ``bcos`` is there to need it."""
    if not (_module_exists("bcos") and _module_exists("torchvision")):
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        compat.import_reference()
    except Exception:  # the script's own import will tell, in its own words
        return


def _summary(tally: Counter) -> str:
    alone = [(count, *key) for key, count in tally.items() if key is not None]
    line = f"bcos_kernels: {tally[None]} B-cos layers accelerated, {sum(n for n, *_ in alone)} left alone"
    return line + (": " + "; ".join(f"{n} {kind} ({why})" for n, kind, why in alone) if alone else "")
