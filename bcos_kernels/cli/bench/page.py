"""A report as one HTML page that needs nothing beside it: pictures with figures under the pointer, sorted tables."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from .tables import Part, Table

__all__ = ["page", "pictured", "section", "tabulated"]

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
figure { margin: 1.5rem 0; max-width: 60rem; }
figure svg { display: block; width: 100%; height: auto; }
figure use:hover, figure [id*=told]:hover > path { stroke: #000 !important; stroke-width: 2 !important; }
.search { font: inherit; padding: 0.3rem 0.5rem; width: 100%; max-width: 24rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #e2e2e2; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: #fff6d6; }
th { cursor: pointer; background: #f4f4f4; }
th[data-order]::after { content: " ↑"; }
th[data-order="-1"]::after { content: " ↓"; }
.met { color: #00692f; } .missed { color: #a32c00; font-weight: bold; }
"""
HELP = (
    "Rest the pointer on a point or a bar to see what it is and its figure. Click the head of a column to sort a "
    "table, and once more for the other order. Words in this field leave only the rows that contain all of them:"
)
SCRIPT = """
const units = { 's': 1, 'ms': 1e-3, 'µs': 1e-6, '%': 1e-2 };
function value(cell) {
  const found = cell.textContent.trim().match(/^([-+]?[\\d.]+(?:e[-+]?\\d+)?)\\s*(s|ms|µs|%)?/);
  return found ? parseFloat(found[1]) * (units[found[2]] ?? 1) : Infinity;
}
for (const head of document.querySelectorAll('th')) {
  head.addEventListener('click', () => {
    const table = head.closest('table'), column = head.cellIndex;
    const order = head.dataset.order === '1' ? -1 : 1;
    for (const other of table.querySelectorAll('th')) delete other.dataset.order;
    head.dataset.order = order;
    const number = head.classList.contains('number');
    const compare = (a, b) => number ? value(a.cells[column]) - value(b.cells[column])
                                     : a.cells[column].textContent.localeCompare(b.cells[column].textContent);
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => order * compare(a, b) || 0));
  });
}
document.querySelector('.search').addEventListener('input', event => {
  const words = event.target.value.toLowerCase().split(/\\s+/);
  for (const row of document.querySelectorAll('tbody tr'))
    row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
});
"""


def cell(text: str) -> str:
    """Escaped, with Markdown's bold and code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text)))


def tabulated(table: Table) -> str:
    """A table whose heads sort it."""

    def line(cells: tuple[str, ...], tag: str) -> str:
        made = []
        for i, text in enumerate(cells):
            kind = "number" if i in table.numbers else text if text in ("met", "missed") else ""
            made.append(f"<{tag}{f' class={kind!r}' if kind else ''}>{cell(text)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    return f'<div class="scroll"><table><thead>{line(table.head, "th")}</thead><tbody>\n{body}\n</tbody></table></div>'


def pictured(title: str, name: str, svg: bytes) -> str:
    """A picture within the page; its ids begin with ``name``, because those of several pictures are alike."""
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|<\?xml[^>]*\?>', "", svg.decode()).replace("xlink:href", "href")
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return f'<figure role="img" aria-label="{html.escape(title)}">{text}</figure>'


def section(title: str, figures: Iterable[str], parts: Iterable[Part]) -> str:
    """The pictures and the parts of the report of one result."""
    shown = (tabulated(p) if isinstance(p, Table) else f"<p>{cell(p.removeprefix('- '))}</p>" for p in parts)
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *figures, *shown])


def page(title: str, sections: Iterable[str]) -> str:
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1>\n<p><label>{HELP}<br><input class="search" type="search"></label></p>\n'
        f"{body}\n<script>{SCRIPT}</script></body></html>\n"
    )
