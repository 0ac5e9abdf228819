"""The tables of a report: the headline, the goals, every model and every layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...text import many
from ..measure import geomean, summarise
from .coda import CODA_NETS
from .contenders import COMPILED
from .models import EXPLAINED_MODELS
from .noise import doubts
from .results import is_gpu, largest_error, main_rows, order, ratio

__all__ = [
    "Part", "Table", "by_group", "every_layer", "every_model", "goals", "headline", "markdown", "no_verdict",
    "operator", "refusals", "roof",
]  # fmt: skip

MEASURES = {"forward": "forward", "explanation": "explanation", "training": "forward + backward"}
NOTHING = "–"
ERRORS = ("error: reference", "error: ours")


@dataclass(frozen=True)
class Table:
    """Cells as text; ``numbers`` are the indices of the columns that are aligned to the right.

    A long table has a ``summary``, under which Markdown folds it.
    """

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: frozenset[int]
    summary: str = ""

    def markdown(self) -> str:
        lines = [self.head, tuple("---:" if i in self.numbers else "---" for i in range(len(self.head))), *self.rows]
        text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"<details><summary>{self.summary}</summary>\n\n{text}\n\n</details>" if self.summary else text


Part = str | Table
"""A part of a report: a paragraph in Markdown, or a table."""


def markdown(parts: Iterable[Part]) -> str:
    """The parts of a report as Markdown."""
    return "\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts) + "\n"


def shown(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def seconds(row: dict, contender: str) -> float | None:
    """The contender's median time."""
    times = row["contenders"].get(contender, {}).get("samples")
    return summarise(times)["p50"] if times else None


def duration(value: float | None) -> str:
    """Seconds with a unit, in three digits."""
    if value is None:
        return NOTHING
    factor, unit = next(((f, u) for f, u in ((1.0, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    digits = 2 if value * factor < 10 else 1 if value * factor < 100 else 0
    return f"{value * factor:.{digits}f} {unit}"


def memory(row: dict) -> tuple[str, dict[str, int]]:
    """``(title, contender -> bytes)``: peak memory where it was measured, else the bytes saved for the backward."""
    for key, what in (("peak", "peak memory"), ("saved", "bytes saved for backward")):
        found = {name: c[key] for name, c in row["contenders"].items() if c.get(key)}
        if {"plain", "ours"} <= found.keys() or {"reference", "ours"} <= found.keys():
            return what, found
    return "", {}


# ------------------------------------------------------------------------------------------------ models


def headline(result: dict) -> Table | None:
    """The training step of each model; None where none was measured. A contender that nobody timed has no column."""
    rows = main_rows(result, "model", "training")
    others = [name for name in ("plain", "reference", "compiled") if any(name in row["contenders"] for row in rows)]
    head: tuple[str, ...] = ("training step", *others, "**ours**", "**ours ÷ plain**", "reference ÷ ours")
    lines = []
    for row in rows:
        what, amount = memory(row)
        relative = {k: amount[k] / amount["plain"] for k in amount if "plain" in amount}
        ours, reference = (shown(largest_error(row, name), ".1e") for name in ("ours", "reference"))
        lines.append(
            (
                f"{row['group']}, batch {row['batch']}",
                *(duration(seconds(row, name)) for name in others),
                f"**{duration(seconds(row, 'ours'))}**",
                f"**{shown(ratio(row, 'ours', 'plain'))}**",
                shown(ratio(row, "reference", "ours")),
                f"**{shown(relative.get('ours'))}** ({shown(relative.get('reference'))})",
                f"**{ours}** ({reference})",
            )
        )
    head += (f"{what or 'memory'} ÷ plain: **ours** (reference)", "error: **ours** (reference)") if rows else ()
    return Table(head, lines, frozenset(range(1, len(head)))) if lines else None


def every_model(result: dict) -> Table | None:
    """Each model and measure: the plain network's time, the others relative to it, memory and errors."""
    rows = main_rows(result, "model")
    others = [name for name in order(rows) if name != "plain"]
    head = ("model", "measure", "batch", "plain", *(f"{name} ÷ plain" for name in others))
    head += ("reference ÷ ours", *(f"memory: {name}" for name in ("plain", "reference", "ours")), *ERRORS)
    lines = []
    for row in rows:
        amount = memory(row)[1]
        lines.append(
            (
                row["group"],
                row["measure"],
                str(row["batch"]),
                duration(seconds(row, "plain")),
                *(shown(ratio(row, name, "plain")) for name in others),
                shown(ratio(row, "reference", "ours")),
                *(f"{amount[k] / 2**20:.0f} MiB" if k in amount else NOTHING for k in ("plain", "reference", "ours")),
                *(shown(largest_error(row, name), ".1e") for name in ("reference", "ours")),
            )
        )
    return Table(head, lines, frozenset(range(2, len(head)))) if lines else None


# ------------------------------------------------------------------------------------------------ layers


def every_layer(result: dict) -> Table | None:
    """Each layer and measure: the plain layer's time, the others relative to it, the share of the roof, errors."""
    rows = main_rows(result, "layer")
    others = [name for name in order(rows) if name != "plain"]
    served = len({way for row in rows for way in row.get("served", {}).get("ours", ())}) > 1
    relative = (f"{name} ÷ plain" for name in others)
    head = ("layer", "measure", "plain", *relative, "roof reached: plain", "roof reached: ours", *ERRORS)
    head += ("served by",) if served else ()
    lines = []
    for row in rows:
        ways = (", ".join(row.get("served", {}).get("ours", ())) or NOTHING,) if served else ()
        lines.append(
            (
                row["workload"],
                row["measure"],
                duration(seconds(row, "plain")),
                *(shown(ratio(row, name, "plain")) for name in others),
                *(shown(roof(row, name), ".0%") for name in ("plain", "ours")),
                *(shown(largest_error(row, name), ".1e") for name in ("reference", "ours")),
                *ways,
            )
        )
    return Table(head, lines, frozenset(range(2, len(head) - served))) if lines else None


def by_group(result: dict) -> Table | None:
    """Geometric means over the layers of each model."""
    rows = main_rows(result, "layer")
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for a, b in (("ours", "plain"), ("reference", "ours"), ("compiled", "ours")):
        for measure, words in MEASURES.items():
            for row in rows:
                if row["measure"] == measure and (found := ratio(row, a, b)) is not None:
                    values.setdefault((f"{a} ÷ {b}", words), {}).setdefault(row["group"], []).append(found)
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        layers = str(len({row["workload"] for row in rows if row["group"] == group}))
        means = (shown(geomean(column[group]) if group in column else None) for column in values.values())
        lines.append((group, layers, *means))
    head = ("geometric mean over", "layers", *(f"{pair}: {words}" for pair, words in values))
    return Table(head, lines, frozenset(range(1, len(head)))) if lines else None


def roof(row: dict, contender: str) -> float | None:
    """The share of the roof that a contender reaches: the floor's time ÷ its own."""
    time, floor = seconds(row, contender), row.get("floor")
    return floor["seconds"] / time if time and floor else None


def operator(row: dict) -> str:
    """The kind of a layer, which its name tells; empty for a norm."""
    shape = row["workload"].rpartition("/")[2]
    kinds = {"norm-": "", "-dw": "depthwise ", "-k1s": "1×1 ", r"-g\d+k": "grouped ", "-k": ""}
    found = next((kind for sign, kind in kinds.items() if re.search(sign, shape)), None)
    return "linear" if found is None else "" if is_norm(row) else f"{found}convolution"


def refusals(result: dict) -> list[str]:
    """Which contenders were refused, why, and in which rows; each reason stands once."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        for name, reason in (row.get("refused") or {}).items():
            where.setdefault((name, reason), []).append(f"{row['workload']} ({row['measure']})")
    return [f"{name} refused: {reason}: {', '.join(rows)}" for (name, reason), rows in where.items()]


def no_verdict(result: dict) -> str:
    """A sentence that says why there are no verdicts on times; empty where there are."""
    found = doubts(result)
    return f"No verdict on times, they are too noisy: {'; '.join(found)}." if found else ""


# ------------------------------------------------------------------------------------------------ goals

GROUPS = {
    "ResNet-50 convolutions": lambda row: row["model"] == "resnet50",
    "ViT-S linears": lambda row: row["model"] == "vit_s",
    "ConvNeXt-T depthwise": lambda row: row["model"] == "convnext_t" and "-dw" in row["workload"],
    "ConvNeXt-T other convolutions": lambda row: row["model"] == "convnext_t" and "-dw" not in row["workload"],
}
CONVOLUTIONS, LINEARS, DEPTHWISE, OTHERS = GROUPS
NORMS = "norms"
WORST = "worst layer"
GPU_GOALS = (
    ("forward", "ours", "plain", "≤ 1.05", CONVOLUTIONS),
    ("forward", "ours", "plain", "≤ 1.05", LINEARS),
    ("forward", "ours", "plain", "≤ 1.05", OTHERS),
    ("forward", "ours", "plain", "≤ 0.8", DEPTHWISE),
    ("forward", "ours", "plain", "≤ 1.05", ""),
    ("forward", "compiled", "ours", "≥ 1.6", ""),
    ("forward", "reference", "ours", "≥ 3.5", ""),
    ("explanation", "ours", "plain", "≤ 1.15", ""),
    ("training", "ours", "plain", "≤ 1.15", ""),
    ("training", "compiled", "ours", "≥ 1.6", ""),
    ("training", "reference", "ours", "≥ 4", ""),
    ("forward", "ours", "plain", "≤ 1.00", NORMS),
    ("training", "ours", "plain", "≤ 1.00", NORMS),
)
CPU_GOALS = (
    ("forward", "ours", "plain", "≤ 1.08", CONVOLUTIONS),
    ("forward", "ours", "plain", "≤ 0.65", LINEARS),
    ("forward", "ours", "plain", "≤ 1.05", DEPTHWISE),
    ("forward", "ours", "plain", "≤ 1.25", WORST),
    ("training", "ours", "plain", "≤ 1.15", ""),
    ("explanation", "ours", "plain", "≤ 1.10", ""),
    ("training", "reference", "ours", "≥ 2.0", ""),
    ("training", "compiled", "ours", "≥ 1.3", ""),
    ("forward", "ours", "plain", "≤ 1.00", NORMS),
    ("training", "ours", "plain", "≤ 1.00", NORMS),
)
"""(measure, contender, the contender that its time is divided by, bound, group of layers); empty for all layers."""

ModelGoals = tuple[tuple[str, str, str, str, tuple[str, ...]], ...]
"""(measure, contender, the contender that its time is divided by, bound, models). Each of these models has its own
line; () is the geometric mean over all B-cos networks."""

GPU_MODEL_GOALS: ModelGoals = (
    ("training", "ours", "plain", "≤ 0.95", ("resnet50",)),
    ("training", "compiled", "ours", "≥ 2", ("resnet50",)),
)
CPU_MODEL_GOALS: ModelGoals = (
    ("training", "ours", "plain", "≤ 1.05", ("resnet50", "vgg11")),
    ("training", "ours", "plain", "≤ 1.10", ("resnext50", "densenet121")),
    ("training", "ours", "plain", "≤ 0.85", ("convnext_t",)),
    ("training", "ours", "plain", "≤ 0.92", ("vit_s", "vitc_s")),
    ("explanation", "ours", "plain", "≤ 1.00", ()),
    ("inference", "ours", "plain", "≤ 1.00", ()),
    ("training", "reference", "ours", "≥ 1.7", ()),
    ("explanation loss", "ours", "plain", "≤ 1.15", ("resnet50", "resnext50", "densenet121", "vgg11")),
    ("explanation loss", "ours", "plain", "≤ 1.05", ("convnext_t", "vit_s", "vitc_s")),
    ("explanation loss", "reference", "ours", "≥ 1.5", ()),
    ("explained batch", "reference", "ours", "≥ 2.5", EXPLAINED_MODELS),
    ("explained grids", "reference", "ours", "≥ 2.5", EXPLAINED_MODELS),
    ("further classes", "ours", "plain", "≤ 1.05", EXPLAINED_MODELS),
    ("training", "compiled", "ours", "≥ 1.10", ("resnet50", "densenet121")),
    ("training", "compiled ours", "compiled plain", "≤ 1.05", ()),
    ("training", "reference", "ours", "≥ 4", ("coda_cifar10",)),
    ("training", "reference", "ours", "≥ 3", ("coda_imagenet",)),
    ("explanation", "reference", "ours", "≥ 3", ("coda_imagenet",)),
)
PEAK_GOALS = {"coda_cifar10": "≥ 8", "coda_imagenet": ""}
"""Model -> bound of the reference's peak memory in a training step ÷ ours."""

Figure = tuple[str, float, str, str]
"""What was measured, its value, the bound (empty without a goal), and over what."""


def goals(result: dict) -> Table:
    """The goals that were measured, met or missed, and the share of the roof; a noisy run has no verdict on times."""
    noisy = bool(doubts(result))
    figures = [(*figure, noisy) for figure in times(result)]
    figures += [(*figure, False) for figure in (*sizes(result), *peaks(result), *roof_shares(result))]
    lines: list[tuple[str, ...]] = []
    for what, value, bound, over, doubtful in figures:
        told = "no verdict" if doubtful and bound else verdict(value, bound)
        lines.append((what, beside(value, bound), bound, told, over))
    return Table(("measured", "figure", "goal", "", "over"), lines, frozenset({1}))


def is_norm(row: dict) -> bool:
    """Whether the workload of a row is a norm, and not a layer."""
    return "/norm-" in row["workload"]


def title(contender: str) -> str:
    """A contender in the words of a report."""
    return f"torch.compile({COMPILED[contender]})" if contender in COMPILED else contender


def beside(value: float, bound: str) -> str:
    """A figure in two digits behind the point, and in more where two would read as another verdict."""
    texts = (f"{value:.{digits}f}" for digits in range(2, 9))
    return next((text for text in texts if verdict(float(text), bound) == verdict(value, bound)), f"{value:.2f}")


def verdict(value: float, bound: str) -> str:
    if not bound:
        return ""
    sign, limit = bound.split()
    return "met" if (value <= float(limit) if sign == "≤" else value >= float(limit)) else "missed"


def times(result: dict) -> Iterator[Figure]:
    for measure, a, b, bound, group in GPU_GOALS if is_gpu(result) else CPU_GOALS:
        rows = [row for row in main_rows(result, "layer", measure) if is_norm(row) == (group == NORMS)]
        rows = [row for row in rows if group not in GROUPS or GROUPS[group](row)]
        values = {row["workload"]: r for row in rows if (r := ratio(row, a, b)) is not None}
        what = f"{MEASURES[measure]}, {title(a)} ÷ {b}{f': {group}' if group else ''}"
        if values and group == WORST:
            name = max(values, key=values.__getitem__)
            yield what, values[name], bound, name
        elif values:
            yield what, geomean(values.values()), bound, many(len(values), "layer")
    if host := {f"{h['layer']}, {h['measure']}": h["above"] for h in result.get("host", ())}:
        name = max(host, key=host.__getitem__)
        yield "host time of a call above plain, µs: worst", host[name], "≤ 15", name
    yield from times_of_models(result, GPU_MODEL_GOALS if is_gpu(result) else CPU_MODEL_GOALS)


def times_of_models(result: dict, wanted: ModelGoals) -> Iterator[Figure]:
    for measure, a, b, bound, models in wanted:
        rows = main_rows(result, "model", measure)
        found = {row["workload"]: (row, r) for row in rows if (r := ratio(row, a, b)) is not None}
        for model in models:
            if model in found:
                row, value = found[model]
                yield f"{row['group']} {measure}, {title(a)} ÷ {title(b)}", value, bound, f"batch {row['batch']}"
        values = [value for model, (_, value) in found.items() if model not in CODA_NETS and not models]
        if values:
            over = many(len(values), "model")
            yield f"models, {measure}, {title(a)} ÷ {title(b)}", geomean(values), bound, over


def sizes(result: dict) -> Iterator[Figure]:
    """Memory of a training step, models before layers."""
    for scope in ("model", "layer"):
        for key, what, bound in (("saved", "bytes saved for backward", "≤ 1.05"), ("peak", "peak memory", "")):
            found = [row["contenders"] for row in main_rows(result, scope, "training")]
            pairs = [(c.get("ours", {}).get(key), c.get("plain", {}).get(key)) for c in found]
            if values := [ours / plain for ours, plain in pairs if ours and plain]:
                yield f"{what}, ours ÷ plain: {scope}s", geomean(values), bound, many(len(values), scope)


def peaks(result: dict) -> Iterator[Figure]:
    """The figures of :data:`PEAK_GOALS` that were measured."""
    for row in main_rows(result, "model", "training"):
        of = {name: c.get("peak") for name, c in row["contenders"].items()}
        if row["model"] in PEAK_GOALS and of.get("ours") and of.get("reference"):
            what = f"{row['group']} training, peak memory, reference ÷ ours"
            yield what, of["reference"] / of["ours"], PEAK_GOALS[row["model"]], f"batch {row['batch']}"


def roof_shares(result: dict) -> Iterator[Figure]:
    """How close ours comes to the roof, with the plain layer's share beside it."""
    for measure, words in MEASURES.items():
        pairs = [[roof(row, name) for name in ("ours", "plain")] for row in main_rows(result, "layer", measure)]
        if pairs := [pair for pair in pairs if all(pair)]:
            ours, plain = map(geomean, zip(*pairs, strict=True))
            yield f"{words}, share of the roof reached", ours, "", f"{many(len(pairs), 'layer')}; plain {plain:.2f}"
