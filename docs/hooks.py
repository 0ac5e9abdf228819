"""What the build of the documentation adds to mkdocs: pictures from outside of ``docs/``, and links in docstrings."""

from __future__ import annotations

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"
"""Where the pictures of measurements lie. Pages link to them relative to ``docs/``, as one reads them in a checkout."""

ROLE = re.compile(r":(?:func|class|meth|mod):`([\w.]+)`")


def on_files(files, config):
    """Adds the stored pictures to the site."""
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in (".png", ".svg"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Links to the pictures of the site, and lets Markdown stand in what can be folded away."""
    return markdown.replace(f"](../{RESULTS}/", "](results/").replace("<details>", '<details markdown="1">')


def on_page_content(html: str, page, config, files) -> str:
    """Lets long names in the cells of tables break behind an underscore, a slash or a colon."""

    def breakable(name: re.Match) -> str:
        return re.sub(r"(_|/|::)(?=\w)", r"\1<wbr>", name[0])

    def cell(found: re.Match) -> str:
        return re.sub(r"(?<=<code>)[^<]+", breakable, found[0])

    return re.sub(r"<td.*?</td>", cell, html, flags=re.DOTALL)


def documented() -> dict[str, str]:
    """What the pages of the API show: the last part of its name -> its whole name."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    return {name.rpartition(".")[2]: name for name in reversed(re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE))}


class Roles(griffe.Extension):
    """Turns ``:func:`name``` in docstrings into a link to what the pages of the API show under this name."""

    def on_object(self, *, obj: griffe.Object, **others) -> None:
        if obj.docstring:
            names = documented()
            obj.docstring.value = ROLE.sub(lambda found: _link(found[1], obj, names), obj.docstring.value)


def _link(name: str, obj: griffe.Object, names: dict[str, str]) -> str:
    """The link; a name of the same module goes before the same name of another."""
    last = name.rpartition(".")[2]
    beside = f"{obj.module.path}.{last}"
    target = beside if beside in names.values() else names.get(last)
    return f"[`{last}`][{target}]" if target else f"`{name}`"
