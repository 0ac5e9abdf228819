"""``python -m bcos_kernels bench report``: results as Markdown tables, pictures and one HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from ..terminal import refused, unwritable
from . import console, page, tables
from .results import conditions, covered, device, is_gpu, read, state

__all__ = ["configure", "headline", "main", "parts", "table"]

AVERAGES = "A figure is the median of the ratios of each round; over several layers it is their geometric mean."
ALT = {
    "headline": "Cost relative to the plain network of the same shape",
    "layers": "Time of each layer relative to the plain layer",
    "roofline": "FLOP/s of each layer below the roof of the device, coloured by operator",
    "scaling": "Time relative to plain over batch and image size",
}


# ------------------------------------------------------------------------------------------------ Markdown


def table(result: dict, layers: bool = True) -> str:
    """:func:`parts` as Markdown."""
    return tables.markdown(parts(result, layers))


def parts(result: dict, layers: bool = True, links: dict[str, str] | None = None) -> list[tables.Part]:
    """The goals, the conditions, every model and, with ``layers``, every layer.

    ``links`` maps the names of pictures to their files.
    """
    goals = tables.goals(result)
    found: list[tables.Part] = [goals] if goals.rows else []
    found.append(f"{conditions(result)}. {AVERAGES} {state(result)}")
    found += [f"**{sentence}**"] if (sentence := tables.no_verdict(result)) else []
    found += [groups] if (groups := tables.by_group(result)) else []
    found += [f"![{ALT[name]}]({link})" for name, link in (links or {}).items()]
    models, every = tables.every_model(result), tables.every_layer(result)
    if models:
        of_models = "Every model and measure: the plain network, and the others relative to it"
        found.append(replace(models, summary=of_models) if layers else models)
    if layers and every:
        found.append(replace(every, summary="Layer by layer: the plain layer, and the others relative to it"))
    return found + [f"- {line}" for line in tables.refusals(result)]


def title(result: dict) -> str:
    return f"{device(result)}: {covered(result)}"


def headline(results: list[dict], links: list[dict[str, str]]) -> str | None:
    """The picture and the table of the first result with whole models, a GPU's before a CPU's; None without models."""
    for result, own in sorted(zip(results, links, strict=True), key=lambda pair: not is_gpu(pair[0])):
        found = tables.headline(result)
        if found is not None:
            image = f"![{ALT['headline']}]({own['headline']})\n\n" if "headline" in own else ""
            return f"{image}{found.markdown()}\n\n<sub>{conditions(result)}. {state(result)}</sub>\n"
    return None


def filled(path: Path, contents: dict[str, str | None]) -> str:
    """The text of ``path`` with each content between its markers, where the file has them.

    Raises ValueError for a file without any markers.
    """
    text, found = path.read_text(encoding="utf-8"), False
    for name, content in contents.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        found |= bool(opened and closed)
        if opened and closed and content is not None:
            text = f"{before}{begin}\n{content}{end}{after}"
    if not found:
        pairs = " or ".join(f"<!-- {name} --> and <!-- /{name} -->" for name in contents)
        raise ValueError(f"{path}: the markers {pairs} are needed, in this order")
    return text


def web_page(results: list[dict], pictures: list[dict[str, dict[str, bytes]]]) -> str:
    """One HTML page with a section for each result; pictures are in it."""
    sections = []
    for n, (result, drawn) in enumerate(zip(results, pictures, strict=True)):
        figures = [page.pictured(ALT[name], f"{n}-{name}", files["svg"]) for name, files in drawn.items()]
        sections.append(page.section(title(result), figures, parts(result)))
    return page.page("bcos_kernels: speed and memory", sections)


# ------------------------------------------------------------------------------------------------ command


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Makes tables and pictures of the results of bench; several files become sections."
    parser.add_argument("files", nargs="+", type=Path, metavar="RESULT", help="a file that bench stored")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="store the tables instead of printing them")
    parser.add_argument("--no-layers", action="store_true", help="leave out the table of every layer")
    parser.add_argument("--html", type=Path, metavar="FILE", help="store one page with tables and pictures")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="store the pictures, as PNG and SVG")
    parser.add_argument(
        "--readme", nargs="+", type=Path, default=[], metavar="FILE",
        help="fill between <!-- table --> and <!-- /table -->, and between <!-- headline --> and its end; their "
        "pictures go to --plots, or beside the first result",
    )  # fmt: skip


def checked(options: argparse.Namespace) -> list[dict]:
    """The results in the files; raises ValueError where one of them, or a place to write to, cannot be used."""
    for path in filter(None, (options.markdown, options.html, *options.readme)):
        if reason := unwritable(path):
            raise ValueError(f"{path}: {reason}")
    for path in options.readme:
        if not path.is_file():
            raise ValueError(f"--readme {path}: there is no such file")
    if options.plots is not None and options.plots.exists() and not options.plots.is_dir():
        raise ValueError(f"--plots {options.plots}: a folder is needed, and it is a file")
    results = [read(path) for path in options.files]
    if len({path.stem for path in options.files}) < len(options.files):
        names = ", ".join(map(str, options.files))
        raise ValueError(f"{names}: names that differ are needed, because the pictures are named after the files")
    return results


def write(options: argparse.Namespace) -> None:
    """Writes everything that was asked for; before that it raises what :func:`main` refuses."""
    results = checked(options)
    folder = options.plots or (options.files[0].parent if options.readme else None)
    pictures: list[dict[str, dict[str, bytes]]] = [{} for _ in results]
    if folder is not None or options.html is not None:
        from .plots import draw

        pictures = [draw(result) for result in results]
    named = [
        {name: f"{path.stem}-{name}.png" for name in drawn} for path, drawn in zip(options.files, pictures, strict=True)
    ]
    written: dict[Path, str | bytes] = {}
    if folder is not None:
        for files, drawn in zip(named, pictures, strict=True):
            for name, by_ending in drawn.items():
                written |= {(folder / files[name]).with_suffix(f".{end}"): file for end, file in by_ending.items()}
    if options.html is not None:
        written[options.html] = web_page(results, pictures).encode()

    def contents(place: Path) -> tuple[str | None, list[tables.Part]]:
        """The headline and the tables for a file in ``place``, with links to the pictures."""
        way = Path(os.path.relpath(folder, place)) if folder is not None else Path()
        links = [{name: (way / file).as_posix() for name, file in files.items()} for files in named]
        others = [{name: link for name, link in own.items() if name != "headline"} for own in links]
        sections = zip(results, others if options.readme else links, strict=True)
        found = [part for r, own in sections for part in (f"### {title(r)}", *parts(r, not options.no_layers, own))]
        return headline(results, links), found

    for path in options.readme:
        top, found = contents(path.absolute().parent)
        written[path] = filled(path, {"headline": top, "table": tables.markdown(found)})
    if options.markdown is not None:
        written[options.markdown] = tables.markdown(contents(options.markdown.absolute().parent)[1])
    elif not options.readme and options.html is None:
        console.show(contents(Path.cwd())[1])
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for path, made in written.items():
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        print(f"written: {path}", file=sys.stderr)


def main(options: argparse.Namespace) -> int:
    """Returns 0, or 2 where a file cannot be used, or where pictures are asked for without matplotlib."""
    try:
        write(options)
    except (ImportError, OSError, ValueError) as error:
        return refused("bench report", error)
    return 0
