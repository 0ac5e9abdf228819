"""``python -m benchmarks.report``: a Markdown table made from a stored result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .cpu_layers import RESULT
from .timing import geomean

__all__ = ["fill", "main", "table"]

BEGIN, END = "<!-- table -->", "<!-- /table -->"
CONVOLUTIONS, LINEARS, DEPTHWISE = "ResNet-50 convolutions", "ViT-S linears", "ConvNeXt-T depthwise"


def medians(result: dict, measure: str, pair: str, group: str | None = None) -> dict[str, float]:
    """Layer -> median ratio of ``pair``, for the rows that have one."""
    return {
        row["layer"]: row["ratios"][pair]["p50"]
        for row in result.get("layers", ())
        if row["measure"] == measure and group in (None, row["group"]) and pair in row["ratios"]
    }


def goals(result: dict) -> Iterator[tuple[str, float | None, str, str]]:
    """``(what, figure, goal, remark)``; the figure is None where nothing was measured."""

    def row(what: str, goal: str, measure: str, pair: str, group=None, reduce: Callable = geomean):
        values = medians(result, measure, pair, group)
        remark = f"{len(values)} layers"
        if reduce is max and values:
            remark = max(values, key=values.__getitem__)
        return what, reduce(list(values.values())) if values else None, goal, remark

    forward = "forward, ours ÷ plain"
    yield row(f"{forward}: {CONVOLUTIONS}", "≤ 1.08", "forward", "ours/plain", CONVOLUTIONS)
    yield row(f"{forward}: {LINEARS}", "≤ 0.65", "forward", "ours/plain", LINEARS)
    yield row(f"{forward}: {DEPTHWISE}", "≤ 1.05", "forward", "ours/plain", DEPTHWISE)
    yield row(f"{forward}: worst layer", "≤ 1.25", "forward", "ours/plain", reduce=max)
    yield row("forward + backward, ours ÷ plain", "≤ 1.15", "training", "ours/plain")
    yield row("explanation, ours ÷ plain", "≤ 1.10", "explanation", "ours/plain")
    yield row("forward + backward, reference ÷ ours", "≥ 2.0", "training", "reference/ours")
    yield row("forward + backward, torch.compile(reference) ÷ ours", "≥ 1.3", "training", "compiled/ours")
    for model in result.get("models", ()):
        figure = model.get("ratios", {}).get("reference/ours", {}).get("p50")
        remark = f"batch {model['batch']}" + "".join(f"; {v}" for v in model.get("refused", {}).values())
        yield "ResNet-50 training step, reference ÷ ours", figure, "≥ 1.5", remark
    if "saved" in result:
        figure = result["saved"]["ours/plain"]
        yield "bytes saved for backward by a stack of layers, ours ÷ plain", figure, "≤ 1.05", ""


def met(figure: float, goal: str) -> bool:
    sign, bound = goal.split()
    return figure <= float(bound) if sign == "≤" else figure >= float(bound)


def table(result: dict) -> str:
    """The goals, the layers in detail, and where all of it was measured, as Markdown."""
    lines = ["| measured | figure | goal | | over |", "|---|---:|---:|---|---|"]
    for what, figure, goal, remark in goals(result):
        verdict = "" if figure is None else "met" if met(figure, goal) else "missed"
        lines.append(f"| {what} | {'–' if figure is None else f'{figure:.2f}'} | {goal} | {verdict} | {remark} |")
    m, v = result["machine"], result["versions"]
    partial = "" if result["complete"] else " The run was interrupted: layers are missing."
    lines += [
        "",
        f"{m['cpu']}, {m['threads']} threads, torch {v['torch']}, batch {result['settings']['batch']}, fp32, "
        f"channels_last; `{result['command']}` at commit {(result['commit'] or 'unknown')[:10]}. "
        f"A figure is the geometric mean over layers of the median of paired ratios.{partial}",
        "",
        *details(result),
    ]
    return "\n".join(lines) + "\n"


def details(result: dict) -> Iterator[str]:
    """Every layer: milliseconds of the plain layer, and ratios to it."""
    yield "<details><summary>Layer by layer: the plain layer, and the others relative to it</summary>"
    yield ""
    yield "| layer | measure | plain, ms | ours | reference | compiled reference | refused |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for row in result.get("layers", ()):
        seconds = {name: summary["p50"] for name, summary in row["seconds"].items()}
        cells = [f"{1e3 * seconds['plain']:.2f}"]
        for name in ("ours", "reference", "compiled"):
            cells.append(f"{seconds[name] / seconds['plain']:.2f}" if name in seconds else "–")
        refused = "; ".join(f"{name}: {reason}" for name, reason in row["refused"].items())
        yield f"| {row['layer']} | {row['measure']} | {' | '.join(cells)} | {refused} |"
    yield ""
    yield "</details>"


def fill(readme: Path, content: str) -> None:
    """Puts ``content`` between the markers of ``readme``; raises ValueError if they are not there."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme}: the markers {BEGIN} and {END} are needed, in this order")
    readme.write_text(f"{before}{BEGIN}\n{content}{END}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("result", nargs="?", type=Path, default=RESULT, help="a stored result")
    parser.add_argument("--readme", type=Path, help="file to put the table into, between its markers")
    arguments = parser.parse_args(argv)
    content = table(json.loads(arguments.result.read_text(encoding="utf-8")))
    print(content)
    if arguments.readme is not None:
        fill(arguments.readme, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
