"""Tables and progress for a terminal, and tables for a notebook."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from html import escape

__all__ = ["aligned", "folded_html", "many", "noted", "progress", "wrapped"]


def aligned(rows: Iterable[tuple[str, ...]], right: Container[int] = ()) -> str:
    """A table as text: rows with equal numbers of cells become lines; the columns of ``right`` end at one place."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [">" if i in right else "<" for i in range(len(widths))]
    lines = ("  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def many(count: int, noun: str) -> str:
    """The count and the noun, in the plural unless the count is 1."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def noted(rows: Iterable[tuple[tuple[str, ...], str]], head: tuple[str, ...]) -> list[str]:
    """A table, and below it the notes of its rows, by number: the third cell of a row with a note ends with it."""
    notes: dict[str, int] = {}
    lines = [head]
    for cells, note in rows:
        number = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
        lines.append((*cells[:2], cells[2] + number, *cells[3:]))
    return [aligned(lines), *(wrapped(f"[{number}] {note}") for note, number in notes.items())]


def folded_html(summary: Iterable[str], head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """The lines of a summary, and under it a folded table of all modules, for a notebook."""
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    heads = "".join(f"<th>{escape(title)}</th>" for title in head)
    table = f"<details><summary>all modules</summary><table><tr>{heads}</tr>{lines}</table></details>"
    return f"<p>{'<br>'.join(map(escape, summary))}</p>{table}"


def wrapped(text: str) -> str:
    """The text in lines that fit into the terminal, all but the first of them indented."""
    width = shutil.get_terminal_size().columns
    return textwrap.fill(text, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


@contextmanager
def progress(title: str, steps: float, show: bool = True) -> Iterator[Callable[..., None]]:
    """Yields ``advance(what, amount=1)``, which shows on stderr how many of ``steps`` are done.

    If ``rich`` is installed, it shows a bar and the remaining time, otherwise it prints a line for each call.
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
