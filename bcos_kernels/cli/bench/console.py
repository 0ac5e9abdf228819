"""Reports as they are printed: tables that fit a terminal, and Markdown in a pipe or where rich is not installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from .tables import Part, Table, markdown

__all__ = ["fitting", "show"]

BETWEEN = 2
"""Blanks between two columns of a table; rich draws one of them."""


def show(parts: Sequence[Part]) -> None:
    """Prints the parts of a report."""
    if not sys.stdout.isatty() or find_spec("rich") is None:
        print(markdown(parts), end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    for part in parts:
        if isinstance(part, str):
            console.print(Markdown(part), "")
            continue
        if part.summary:
            console.print(part.summary, highlight=False)
        for columns in fitting(part, console.width):
            console.print(_drawn(part, columns), "")


def fitting(table: Table, width: int) -> list[list[int]]:
    """The columns of the table in parts that fit into ``width``; each begins with the leading columns of text."""
    keys = list(range(min(table.numbers, default=len(table.head))))
    parts: list[list[int]] = []
    for column in range(len(keys), len(table.head)):
        if not parts or sum(_narrowest(table, i) + BETWEEN for i in (*keys, *parts[-1], column)) > width:
            parts.append([])
        parts[-1].append(column)
    return [keys + part for part in parts or [[]]]


def _narrowest(table: Table, column: int) -> int:
    """The width of a column that breaks no word and no number."""
    cells = [row[column] for row in table.rows]
    words = [table.head[column], *([] if column in table.numbers else cells)]
    whole = cells if column in table.numbers else []
    return max(len(part.strip("*")) for part in (*whole, *(word for text in words for word in text.split()), ""))


def _drawn(table: Table, columns: list[int]) -> Any:
    """Some columns of the table for rich."""
    from rich import box
    from rich.table import Table as Drawing

    drawing = Drawing(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0), show_edge=False)
    for i in columns:
        number = i in table.numbers  # text takes what the numbers leave
        width = _narrowest(table, i) if number else None
        drawing.add_column(_bold(table.head[i]), justify="right" if number else "left", width=width)
    for row in table.rows:
        drawing.add_row(*(_bold(row[i]) for i in columns))
    return drawing


def _bold(text: str) -> Any:
    """Markdown's bold as rich has it."""
    from rich.markup import escape
    from rich.text import Text

    return Text.from_markup(re.sub(r"\*\*(.+?)\*\*", r"[b]\1[/b]", escape(text)))
