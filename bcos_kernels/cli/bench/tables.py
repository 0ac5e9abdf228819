"""The tables of a report: the headline, the goals, every model, every layer, and what is only predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .noise import doubts
from .results import is_gpu, largest_error, main_rows, order, ratio
from .timing import geomean, summarise

__all__ = ["Table", "by_group", "chance", "every_layer", "every_model", "goals", "headline", "predictions", "refusals"]

MODELS = {
    "resnet50": "ResNet-50", "resnext50": "ResNeXt-50", "densenet121": "DenseNet-121", "vgg11": "VGG-11",
    "convnext_t": "ConvNeXt-T", "vit_s": "ViT-S", "vitc_s": "ViTC-S",
}  # fmt: skip
TITLES = {"compiled": "torch.compile(reference)", "compiled-max": "torch.compile(reference), max-autotune"}
NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text; ``numbers`` are the indices of the columns to be aligned to the right."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numbers: frozenset[int]

    def markdown(self) -> str:
        lines = [self.head, tuple("---:" if i in self.numbers else "---" for i in range(len(self.head))), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def shown(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def seconds(row: dict, contender: str) -> float | None:
    """Its median time."""
    times = row["contenders"].get(contender, {}).get("samples")
    return summarise(times)["p50"] if times else None


def duration(value: float | None) -> str:
    """Seconds with a unit, three digits."""
    if value is None:
        return NOTHING
    factor, unit = next(((f, u) for f, u in ((1.0, "s"), (1e3, "ms")) if value * f >= 1), (1e6, "µs"))
    digits = 2 if value * factor < 10 else 1 if value * factor < 100 else 0
    return f"{value * factor:.{digits}f} {unit}"


def memory(row: dict) -> tuple[str, dict[str, int]]:
    """``(what, contender -> bytes)``: peak memory where the device counts it, else the bytes saved for backward."""
    for key, what in (("peak", "peak memory"), ("saved", "bytes saved for backward")):
        found = {name: c[key] for name, c in row["contenders"].items() if c.get(key)}
        if {"plain", "ours"} <= found.keys() or {"reference", "ours"} <= found.keys():
            return what, found
    return "", {}


def model_name(row: dict) -> str:
    return MODELS.get(row["workload"], row["workload"])


# ------------------------------------------------------------------------------------------------ models


def headline(result: dict) -> Table | None:
    """The training step of each model; None where none was measured."""
    rows = main_rows(result, "model", "training")
    head = ("training step", "plain", "reference", "compiled", "**ours**", "reference ÷ ours")
    lines = []
    for row in rows:
        what, amount = memory(row)
        relative = {k: amount[k] / amount["plain"] for k in amount if "plain" in amount}
        times = [duration(seconds(row, name)) for name in ("plain", "reference", "compiled", "ours")]
        ours, reference = (shown(largest_error(row, name), ".1e") for name in ("ours", "reference"))
        lines.append(
            (
                f"{model_name(row)}, batch {row['batch']}",
                *times[:3],
                f"**{times[3]}**",
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
    head += ("reference ÷ ours", "memory: plain", "reference", "ours", "error: reference", "ours")
    lines = []
    for row in rows:
        amount = memory(row)[1]
        lines.append(
            (
                model_name(row),
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
    head = ("layer", "measure", "plain", *others, "roof reached: plain", "ours", "error: reference", "ours")
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


def refusals(result: dict) -> list[str]:
    """Who was refused where, and why, each reason once."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        for name, reason in (row.get("refused") or {}).items():
            where.setdefault((name, reason), []).append(f"{row['workload']} ({row['measure']})")
    return [f"{name} refused: {reason}: {', '.join(rows)}" for (name, reason), rows in where.items()]


def chance(result: dict) -> str:
    """Why there are no verdicts on times, in a sentence; empty where there are."""
    found = doubts(result)
    return f"No verdict on times, they would be chance: {'; '.join(found)}." if found else ""


# ------------------------------------------------------------------------------------------------ goals


@dataclass(frozen=True)
class Goal:
    """A figure and what it should be; the figure is None where nothing was measured."""

    what: str
    figure: float | None
    bound: str = ""
    over: str = ""
    timed: bool = True

    def verdict(self, chance: bool = False) -> str:
        """``met`` or ``missed``, or for a time with ``chance`` neither."""
        if self.figure is None or not self.bound:
            return ""
        if chance and self.timed:
            return "chance"
        sign, value = self.bound.split()
        return "met" if (self.figure <= float(value) if sign == "≤" else self.figure >= float(value)) else "missed"


GROUPS = {
    "ResNet-50 convolutions": lambda row: row["model"] == "resnet50",
    "ViT-S linears": lambda row: row["model"] == "vit_s",
    "ConvNeXt-T depthwise": lambda row: row["model"] == "convnext_t" and "-dw" in row["workload"],
    "ConvNeXt-T other convolutions": lambda row: row["model"] == "convnext_t" and "-dw" not in row["workload"],
}
CONVOLUTIONS, LINEARS, DEPTHWISE, OTHERS = GROUPS
MEASURES = {"forward": "forward", "explanation": "explanation", "training": "forward + backward"}


def over(result: dict, measure: str, a: str, b: str, bound: str, group: str | None = None, worst: bool = False) -> Goal:
    """A ratio over the layers of a group: its geometric mean, or its largest value and whose it is."""
    rows = [row for row in main_rows(result, "layer", measure) if group is None or GROUPS[group](row)]
    values = {row["workload"]: r for row in rows if (r := ratio(row, a, b)) is not None}
    what = f"{MEASURES[measure]}, {TITLES.get(a, a)} ÷ {b}" + (f": {group}" if group else ": worst layer" * worst)
    if not values:
        return Goal(what, None, bound, "0 layers")
    if worst:
        name = max(values, key=values.__getitem__)
        return Goal(what, values[name], bound, name)
    return Goal(what, geomean(list(values.values())), bound, f"{len(values)} layers")


def gpu_goals(result: dict) -> Iterator[Goal]:
    for group in (CONVOLUTIONS, LINEARS, OTHERS):
        yield over(result, "forward", "ours", "plain", "≤ 1.05", group)
    yield over(result, "forward", "ours", "plain", "≤ 0.8", DEPTHWISE)
    yield over(result, "forward", "ours", "plain", "≤ 1.05")
    yield over(result, "forward", "compiled", "ours", "≥ 1.6")
    yield over(result, "forward", "reference", "ours", "≥ 3.5")
    yield over(result, "explanation", "ours", "plain", "≤ 1.25")
    yield over(result, "training", "ours", "plain", "≤ 1.30")
    yield over(result, "training", "compiled", "ours", "≥ 1.6")
    yield over(result, "training", "reference", "ours", "≥ 4")
    host = {f"{h['layer']}, {h['measure']}": h["above"] for h in result.get("host", ())}
    if host:
        name = max(host, key=host.__getitem__)
        yield Goal("host time of a call above plain, µs: worst", host[name], "≤ 15", name)


def cpu_goals(result: dict) -> Iterator[Goal]:
    yield over(result, "forward", "ours", "plain", "≤ 1.08", CONVOLUTIONS)
    yield over(result, "forward", "ours", "plain", "≤ 0.65", LINEARS)
    yield over(result, "forward", "ours", "plain", "≤ 1.05", DEPTHWISE)
    yield over(result, "forward", "ours", "plain", "≤ 1.25", worst=True)
    yield over(result, "training", "ours", "plain", "≤ 1.15")
    yield over(result, "explanation", "ours", "plain", "≤ 1.10")
    yield over(result, "training", "reference", "ours", "≥ 2.0")
    yield over(result, "training", "compiled", "ours", "≥ 1.3")
    for row in main_rows(result, "model", "training"):
        if row["workload"] == "resnet50":
            figure = ratio(row, "reference", "ours")
            yield Goal("ResNet-50 training step, reference ÷ ours", figure, "≥ 1.5", f"batch {row['batch']}")


def saved_goals(result: dict) -> Iterator[Goal]:
    """Memory of a training step, models before layers."""
    for scope in ("model", "layer"):
        for key, what, bound in (("saved", "bytes saved for backward", "≤ 1.05"), ("peak", "peak memory", "")):
            found = [row["contenders"] for row in main_rows(result, scope, "training")]
            pairs = [(c.get("ours", {}).get(key), c.get("plain", {}).get(key)) for c in found]
            values = [ours / plain for ours, plain in pairs if ours and plain]
            if values:
                yield Goal(
                    f"{what}, ours ÷ plain: {scope}s", geomean(values), bound, f"{len(values)} {scope}s", timed=False
                )


def roof_goals(result: dict) -> Iterator[Goal]:
    """How near ours comes to the roof, with the plain layer's share beside it."""
    for measure, words in MEASURES.items():
        shares = [
            pair
            for row in main_rows(result, "layer", measure)
            if all(pair := [roof(row, n) for n in ("ours", "plain")])
        ]
        if shares:
            ours, plain = (geomean(list(values)) for values in zip(*shares, strict=True))
            yield Goal(f"{words}, share of the roof reached", ours, "", f"{len(shares)} layers; plain {plain:.2f}")


def goals(result: dict) -> Table:
    """The goals of the device, met or missed, and the share of the roof; ``chance`` where the run gives no verdict."""
    kind = gpu_goals if is_gpu(result) else cpu_goals
    found: Iterable[Goal] = (*kind(result), *saved_goals(result), *roof_goals(result))
    chance = bool(doubts(result))
    lines = [(goal.what, shown(goal.figure), goal.bound, goal.verdict(chance), goal.over) for goal in found]
    return Table(("measured", "figure", "goal", "", "over"), lines, frozenset({1}))


# ------------------------------------------------------------------------------------------------ predictions


def predictions(document: dict) -> dict[str, Table]:
    """Architecture -> the byte model's ours ÷ plain, as a geometric mean over the layers of each model."""
    tables = {}
    for arch, rows in document["predicted"].items():
        directions = list(dict.fromkeys(row["direction"] for row in rows))
        lines = []
        for model in dict.fromkeys(row["model"] for row in rows):
            found = [
                [r["chosen/plain"] for r in rows if (r["model"], r["direction"]) == (model, d)] for d in directions
            ]
            lines.append((MODELS.get(model, model), *(f"{geomean(values):.2f}" for values in found)))
        head = ("predicted, ours ÷ plain", *directions)
        tables[arch] = Table(head, lines, frozenset(range(1, len(head))))
    return tables
