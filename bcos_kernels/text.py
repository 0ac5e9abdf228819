"""Tables and progress for a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

__all__ = ["aligned", "progress"]


def aligned(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of equally many cells as lines with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def progress(title: str, steps: float, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yields ``advance(what, amount=1)``, which shows on stderr how many of ``steps`` are done.

    With ``rich`` it is a bar with the remaining time, without it a line for each call.
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
    start, done = time.monotonic(), 0.0

    def advance(what: str, amount: float = 1) -> None:
        nonlocal done
        done += amount
        left = (time.monotonic() - start) * (steps / done - 1) / 60
        print(f"{title}: {done:g} of {steps:g}: {what}{f', {left:.0f} min left' if left >= 1 else ''}", file=sys.stderr)

    return advance
