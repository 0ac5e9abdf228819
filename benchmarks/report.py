"""``python -m benchmarks.report``: a Markdown table made from a stored result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .cpu_layers import RESULT
from .timing import geomean
from .workloads import OTHERS

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


Goal = tuple[str, float | None, str, str]
"""``(what, figure, goal, remark)``; the figure is None where nothing was measured."""


def _row(
    result: dict, what: str, goal: str, measure: str, pair: str, group: str | None = None, reduce: Callable = geomean
) -> Goal:
    """One goal over the layers of a group; a goal for the largest value names its layer."""
    values = medians(result, measure, pair, group)
    remark = f"{len(values)} layers"
    if reduce is max and values:
        remark = max(values, key=values.__getitem__)
    return what, reduce(list(values.values())) if values else None, goal, remark


def gpu_goals(result: dict) -> Iterator[Goal]:
    """Those of a GPU."""
    row = partial(_row, result)
    forward, explanation, training = "forward", "explanation (dx)", "forward + backward"
    for group in (CONVOLUTIONS, LINEARS, OTHERS):
        yield row(f"{forward}, ours ÷ plain: {group}", "≤ 1.05", "forward", "ours/plain", group)
    yield row(f"{forward}, ours ÷ plain: {DEPTHWISE}", "≤ 0.8", "forward", "ours/plain", DEPTHWISE)
    yield row(f"{forward}, ours ÷ plain", "≤ 1.05", "forward", "ours/plain")
    yield row(f"{forward}, torch.compile(reference) ÷ ours", "≥ 1.6", "forward", "compiled/ours")
    yield row(f"{forward}, reference ÷ ours", "≥ 3.5", "forward", "reference/ours")
    yield row(f"{explanation}, ours ÷ plain", "≤ 1.25", "explanation", "ours/plain")
    yield row(f"{training}, ours ÷ plain", "≤ 1.30", "training", "ours/plain")
    yield row(f"{training}, torch.compile(reference) ÷ ours", "≥ 1.6", "training", "compiled/ours")
    yield row(f"{training}, reference ÷ ours", "≥ 4", "training", "reference/ours")
    host = {f"{h['layer']}, {h['measure']}": h["above"] for h in result.get("host", ())}
    if host:
        worst = max(host, key=host.__getitem__)
        yield "host time of a call above plain, µs: worst", host[worst], "≤ 15", worst
    for what, key in (("bytes saved for backward", "saved"), ("peak memory of a training step", "peak")):
        if key in result:
            goal = "≤ 1.05" if key == "saved" else ""
            yield f"{what}, ours ÷ plain", result[key]["ours/plain"], goal, "a stack of layers"


def cpu_goals(result: dict) -> Iterator[Goal]:
    """Those of a CPU."""
    row = partial(_row, result)
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


def verdict(figure: float | None, goal: str) -> str:
    """``met``, ``missed``, or nothing where there is no figure or no goal."""
    if figure is None or not goal:
        return ""
    sign, bound = goal.split()
    return "met" if (figure <= float(bound) if sign == "≤" else figure >= float(bound)) else "missed"


def table(result: dict, layers: bool = True) -> str:
    """The goals, the layers in detail unless told otherwise, and where all of it was measured, as Markdown."""
    lines = ["| measured | figure | goal | | over |", "|---|---:|---:|---|---|"]
    gpu = result.get("kind") == "gpu"
    for what, figure, goal, remark in (gpu_goals if gpu else cpu_goals)(result):
        shown = "–" if figure is None else f"{figure:.2f}"
        lines.append(f"| {what} | {shown} | {goal} | {verdict(figure, goal)} | {remark} |")
    left_out = "" if result["complete"] else " The run was interrupted: layers are missing."
    if result.get("not_measured"):
        left_out = f" Not measured for want of time: {', '.join(result['not_measured'])}."
    lines += [
        "",
        f"{(on_gpu if gpu else on_cpu)(result)}, channels_last; `{result['command']}` at commit "
        f"{(result['commit'] or 'unknown')[:10]}. "
        f"A figure is the geometric mean over layers of the median of paired ratios.{left_out}",
    ]
    if layers:
        lines += ["", *details(result, GPU_COLUMNS if gpu else CPU_COLUMNS)]
    return "\n".join(lines) + "\n"


def on_cpu(result: dict) -> str:
    m = result["machine"]
    torch = result["versions"]["torch"]
    return f"{m['cpu']}, {m['threads']} threads, torch {torch}, batch {result['settings']['batch']}, fp32"


def on_gpu(result: dict) -> str:
    m, v, s = result["machine"], result["versions"], result["settings"]
    rates = result.get("rates", {"bytes/s": 0, "FLOP/s": 0})
    return (
        f"{m['device']} (driver {m.get('driver')}; copies {rates['bytes/s'] / 1e12:.2f} TB/s, matrix products "
        f"{rates['FLOP/s'] / 1e12:.0f} TFLOP/s), torch {v['torch']}, Triton {v['triton']}, batch {s['batch']} "
        f"(ViT-S a quarter), {s['dtype']}"
    )


CPU_COLUMNS = {"ours": "ours", "reference": "reference", "compiled": "compiled reference"}
GPU_COLUMNS = CPU_COLUMNS | {"one-pass": "one-pass", "semi": "semi", "vendor": "vendor", "floor": "floor"}
"""Contender -> its title; ``floor`` is the byte model's."""


def details(result: dict, columns: dict[str, str]) -> Iterator[str]:
    """Every layer: milliseconds of the plain layer, and ratios to it."""
    yield "<details><summary>Layer by layer: the plain layer, and the others relative to it</summary>"
    yield ""
    yield f"| layer | measure | plain, ms | {' | '.join(columns.values())} | refused |"
    yield f"|---|---|---:|{'---:|' * len(columns)}---|"
    for row in result.get("layers", ()):
        seconds = {name: summary["p50"] for name, summary in row["seconds"].items()}
        if row.get("floor"):
            seconds["floor"] = row["floor"]
        cells = [f"{1e3 * seconds['plain']:.{3 if 'floor' in columns else 2}f}" if "plain" in seconds else "–"]
        for name in columns:
            cells.append(f"{seconds[name] / seconds['plain']:.2f}" if {name, "plain"} <= seconds.keys() else "–")
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
