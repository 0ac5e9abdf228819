"""``python -m bcos_kernels bench report``: results as Markdown tables, pictures and one HTML page."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from . import page, tables
from .results import conditions, device, is_gpu, read, state

__all__ = ["headline", "main", "markdown", "table"]

AVERAGES = "A figure is the median of the ratios of each round, and its geometric mean over layers."
ALT = {
    "headline": "Cost relative to the plain network of the same shape",
    "models": "Training step of each model",
    "layers": "Time of each layer relative to the plain layer",
    "roofline": "Roofline of the layers",
    "scaling": "Time over batch and image size",
}
PREDICTED = "Predicted by the byte model, nothing of this was measured"


# ------------------------------------------------------------------------------------------------ Markdown


def table(result: dict, layers: bool = True, links: dict[str, str] | None = None) -> str:
    """The goals, how all of it was measured, every model, and unless told otherwise every layer, as Markdown.

    ``links`` maps the names of pictures to where they are.
    """
    parts = [tables.goals(result).markdown(), f"{conditions(result)}. {AVERAGES} {state(result)}"]
    parts += [f"**{sentence}**"] if (sentence := tables.chance(result)) else []
    groups = tables.by_group(result)
    parts += [groups.markdown()] if groups else []
    parts += [f"![{ALT[name]}]({link})" for name, link in (links or {}).items()]
    models, every = tables.every_model(result), tables.every_layer(result)
    if models:
        of_models = "Every model and measure: the plain network, and the others relative to it"
        parts.append(folded(of_models, models.markdown()) if layers else models.markdown())
    if layers and every:
        parts.append(folded("Layer by layer: the plain layer, and the others relative to it", every.markdown()))
    parts += [f"- {line}" for line in tables.refusals(result)]
    return "\n\n".join(parts) + "\n"


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def predicted(document: dict) -> str:
    """The byte model's predictions with a sentence that says what they are."""
    parts = [f"{found.markdown()}\n\n{words(document, arch)}" for arch, found in tables.predictions(document).items()]
    return "\n\n".join(parts) + "\n"


def words(document: dict, arch: str) -> str:
    settings, versions = document["settings"], document["versions"]
    return (
        f"{PREDICTED}: {arch}, {settings['dtype']}, batch {settings['images']} (transformers "
        f"{settings['vit_images']}), geometric mean over layers; Triton {versions['triton']}, "
        f"`{document['command']}` at commit {(document.get('commit') or 'unknown')[:10]}."
    )


def markdown(results: list[dict], predictions: list[dict], layers: bool, links: list[dict[str, str]]) -> str:
    """A section for each result with its pictures, and one for each file of predictions."""
    parts = [f"### {device(r)}\n\n{table(r, layers, own)}" for r, own in zip(results, links, strict=True)]
    parts += [f"### Predicted\n\n{predicted(document)}" for document in predictions]
    return "\n".join(parts)


def headline(results: list[dict], links: list[dict[str, str]]) -> str | None:
    """The picture and the table of the first result with whole models, a GPU's before a CPU's; None without models."""
    for result, own in sorted(zip(results, links, strict=True), key=lambda pair: not is_gpu(pair[0])):
        found = tables.headline(result)
        if found is not None:
            image = f"![{ALT['headline']}]({own['headline']})\n\n" if "headline" in own else ""
            return f"{image}{found.markdown()}\n\n<sub>{conditions(result)}. {state(result)}</sub>\n"
    return None


def filled(readme: Path, text: str, name: str, content: str) -> str:
    """The text of ``readme`` with ``content`` between the markers ``name``; raises ValueError without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{readme}: the markers {begin} and {end} are needed, in this order")
    return f"{before}{begin}\n{content}{end}{after}"


# ------------------------------------------------------------------------------------------------ HTML and pictures


def web_page(results: list[dict], predictions: list[dict], pictures: list[dict[str, bytes]]) -> str:
    sections = []
    for result, drawn in zip(results, pictures, strict=True):
        found = (tables.goals(result), tables.by_group(result), tables.every_model(result), tables.every_layer(result))
        images = [page.pictured(name, png) for name, png in drawn.items()]
        sentence = tables.chance(result)
        parts = [
            page.tabulated(found[0]),
            *([f"<p><b>{page.cell(sentence)}</b></p>"] if sentence else []),
            *images,
            *(page.tabulated(t) for t in found[1:] if t),
        ]
        parts += [f"<p>{page.cell(line)}</p>" for line in tables.refusals(result)]
        where = f"{conditions(result, code='')}. {AVERAGES} {state(result)}"
        sections.append(page.section(device(result), where, parts))
    for document in predictions:
        for arch, found in tables.predictions(document).items():
            where = words(document, arch).replace("`", "")
            sections.append(page.section(f"Predicted: {arch}", where, [page.tabulated(found)]))
    return page.page("bcos_kernels: speed and memory", sections)


def draw(results: list[dict]) -> list[dict[str, bytes]]:
    """The pictures of each result; raises ValueError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib, not installed here: pip install 'bcos_kernels[bench]'")
    from . import plots

    return [plots.draw(result) for result in results]


# ------------------------------------------------------------------------------------------------ command


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bcos_kernels bench report",
        description="Tables, pictures and a page of the results of bench; several files become sections.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what bench stored, or triton_aot.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="Markdown tables, instead of printing them")
    parser.add_argument("--no-layers", action="store_true", help="Markdown without the table of every layer")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="pictures, as PNG")
    parser.add_argument("--html", type=Path, metavar="FILE", help="one page with tables and pictures")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE",
        help="fills <!-- headline --> and <!-- table -->; its picture goes to --plots or beside the first result",
    )  # fmt: skip
    return parser.parse_args(argv)


def write(arguments: argparse.Namespace) -> None:
    """Everything that was asked for; raises ValueError or OSError before anything is written where input is bad."""
    documents = [read(path, predictions=True) for path in arguments.files]
    results = [document for document in documents if "rows" in document]
    named = [path for path, document in zip(arguments.files, documents, strict=True) if "rows" in document]
    if len({path.stem for path in named}) < len(named):
        raise ValueError(f"{', '.join(map(str, named))}: names that differ are needed, pictures are named after them")
    predictions = [] if any(map(is_gpu, results)) else [document for document in documents if "rows" not in document]
    folder = arguments.plots
    if folder is None and arguments.readme is not None:
        folder = arguments.files[0].parent / "plots"
    pictures = draw(results) if folder is not None or arguments.html is not None else [{} for _ in results]
    written: dict[Path, str | bytes] = {}
    files = [{name: f"{path.stem}-{name}.png" for name in drawn} for path, drawn in zip(named, pictures, strict=True)]
    if folder is not None:
        for own, drawn in zip(files, pictures, strict=True):
            written |= {folder / own[name]: png for name, png in drawn.items()}

    def content(place: Path, but: str = "") -> tuple[str, list[dict[str, str]]]:
        """The Markdown of a file in ``place`` with its links; without folder there are none."""
        way = Path(os.path.relpath(folder, place)).as_posix() if folder is not None else ""
        links = [{name: f"{way}/{file}" for name, file in own.items() if way} for own in files]
        shown = [{name: link for name, link in own.items() if name != but} for own in links]
        return markdown(results, predictions, not arguments.no_layers, shown), links

    if arguments.readme is not None:
        found, links = content(arguments.readme.parent, but="headline")
        text = filled(arguments.readme, arguments.readme.read_text(encoding="utf-8"), "table", found)
        top = headline(results, links)
        written[arguments.readme] = filled(arguments.readme, text, "headline", top) if top else text
    if arguments.html is not None:
        written[arguments.html] = web_page(results, predictions, pictures)
    if arguments.markdown is not None:
        written[arguments.markdown] = content(arguments.markdown.parent)[0]
    else:
        print(content(Path())[0])
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for path, made in written.items():
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        print(f"written: {path}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where a file cannot be used or matplotlib is missing and pictures were asked for."""
    arguments = parse(argv)
    try:
        write(arguments)
    except (OSError, ValueError) as error:
        print(f"bcos_kernels bench report: {error}", file=sys.stderr)
        return 2
    return 0
