"""What the commands share: arguments that name a model and its input, a bar with the remaining time, and printing."""

from __future__ import annotations

import argparse
import codecs
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from . import compat

__all__ = ["DTYPES", "factory", "json_object", "printable", "progress", "shape"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def shape(text: str) -> tuple[int, ...]:
    """``"256,6,224,224"`` as sizes, for argparse."""
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split(","))
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r}: positive sizes are needed, as in 256,6,224,224")
    return sizes


def json_object(text: str) -> dict:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{text!r}: a JSON object is needed, as in '{{"num_classes": 10}}'""")
    return value


def factory(option: str, name: str) -> Callable:
    """The callable that ``name``, ``pkg.module:factory``, is the name of; errors begin with ``option``.

    Raises ImportError, ValueError where there is no such name, and TypeError where it cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{option} {name}: pkg.module:factory is needed")
    compat.declare_torchvision_operators_when_needed()
    found = importlib.import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option} {name}: {module} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{option} {name}: {attribute} is {type(found).__name__}, not callable")
    return found


@contextmanager
def progress(title: str, steps: float, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yields ``advance(what, amount=1)`` for what was done of ``steps``, shown on stderr.

    A bar with the remaining time if ``rich`` is installed, else a line for each call.
    """
    if not show:
        yield lambda what, amount=1: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _lines(title, steps)
        return
    console = Console(stderr=True)
    with Progress(console=console, speed_estimate_period=3600, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda what, amount=1: bar.update(task, advance=amount, description=what)


def _lines(title: str, steps: float) -> Callable[..., None]:
    start, done = time.monotonic(), 0

    def advance(what: str, amount: float = 1) -> None:
        nonlocal done
        done += amount
        left = (time.monotonic() - start) * (steps / done - 1) / 60
        print(f"{title}: {done} of {steps}: {what}{f', {left:.0f} min left' if left >= 1 else ''}", file=sys.stderr)

    return advance


SPELT = {"÷": "/", "≤": "<=", "≥": ">=", "×": "x", "²": "^2", "µ": "u", "–": "-", "…": "..."}
"""What is printed where an encoding lacks a character; a question mark for any other."""
PIPE_CLOSED = 128 + 13  # how a shell reports a process that SIGPIPE ended


def _spelt(error: UnicodeEncodeError) -> tuple[str, int]:
    return "".join(SPELT.get(c, "?") for c in error.object[error.start : error.end]), error.end


def printable(command: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
    """``command`` so that it prints under any locale, and ends quietly where its reader does (``doctor | head -1``)."""

    def wrapped(arguments: list[str]) -> int:
        codecs.register_error("bcos_kernels.spelt", _spelt)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="bcos_kernels.spelt")
        try:
            status = command(arguments) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
            return PIPE_CLOSED
        return status

    return wrapped
