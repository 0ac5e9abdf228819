"""The pictures of a report. A picture for which the result has no rows is left out, and so are panels without any."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .render import png, svg, tell
from .results import conditions, flops_per_second, main_rows, ratio, state
from .tables import MEASURES, memory, no_verdict, operator, roof, seconds

__all__ = ["PICTURES", "draw"]

WIDTH = 8.3  # inches: as wide as a README's column at 100 pixels an inch


class Look(NamedTuple):
    """How a contender is drawn: it differs from others in shape, hatching and dashes as well as in colour."""

    name: str
    colour: str
    marker: str
    hatch: str
    dashes: Any


LOOKS = {
    "plain": Look("plain", "#7f7f7f", "s", "", ":"),
    "reference": Look("reference", "#d55e00", "^", "///", "--"),
    "compiled": Look("torch.compile(reference)", "#56b4e9", "D", "...", "-."),
    "compiled plain": Look("torch.compile(plain)", "#bdbdbd", "v", "xxx", (0, (1, 4))),
    "compiled ours": Look("torch.compile(bcos_kernels)", "#6f8fc9", "P", "++", (0, (6, 1, 1, 1, 1, 1))),
    "ours": Look("bcos_kernels", "#00539c", "o", "", "-"),
    "ours pairs": Look("bcos_kernels, pairs=True", "#009e73", "X", "oo", (0, (4, 1))),
}
"""The contenders in the order of a legend."""
OPERATORS = {
    "linear": "#0072b2",
    "convolution": "#d55e00",
    "1×1 convolution": "#e69f00",
    "grouped convolution": "#cc79a7",
    "depthwise convolution": "#009e73",
}
"""Kinds of layers and their colours in the roofline."""
PALE = "#bbbbbb"
"""The plain layers there."""
NAMED = 30
"""The most layers whose names fit below an axis."""
BESIDE = 4
"""Entries of a legend side by side."""
LETTERS = 120
"""Small letters that fit above an axis."""


def name(contender: str) -> str:
    return LOOKS[contender].name if contender in LOOKS else contender


def figure(
    result: dict, rows: int, columns: int, height: float, title: str, handles: list[Artist]
) -> tuple[Figure, list[Axes]]:
    """Axes under a title and a legend, and above the conditions of the run; ``height`` is that of a row, in inches."""
    left_out = len(result.get("not_measured") or ())
    rest = f"{left_out} rows or contenders were not measured: see the report." if left_out else state(result)
    lines = textwrap.wrap(f"{conditions(result, code='')}. {rest} {no_verdict(result)}", 135)
    bottom, top = 0.16 * len(lines) + 0.1, 0.45 + 0.2 * math.ceil(len(handles) / BESIDE)
    total = rows * height + bottom + top
    room = (0, bottom / total, 1, 1 - (bottom + top) / total)
    made = Figure((WIDTH, total), layout=ConstrainedLayoutEngine(rect=room, wspace=0.06, hspace=0.06))
    made.text(0.012, 1 - 0.1 / total, title, va="top", fontsize=12, fontweight="bold")
    made.text(0.012, 0.06 / total, "\n".join(lines), va="bottom", fontsize=7.5, color="#555555", parse_math=False)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.35 / total)}
    made.legend(handles=handles, fontsize=8.5, frameon=False, ncols=BESIDE, handletextpad=0.5, **place)
    axes = [made.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e5e5e5", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
    return made, axes


def shape(contender: str) -> dict:
    """How a contender's points look; ours is filled."""
    _, colour, marker, *_ = LOOKS[contender]
    filled = colour if contender == "ours" else "none"
    return {"marker": marker, "markeredgecolor": colour, "markerfacecolor": filled, "color": colour}


def filling(contender: str) -> dict:
    """How a contender's bars look."""
    _, colour, _, hatch, _ = LOOKS[contender]
    return {"facecolor": "white" if hatch else colour, "edgecolor": colour, "hatch": hatch}


def log_ticks(axis, values: list[float], form: str = "g") -> None:
    """Ticks at these values of a log axis alone."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{form}}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def decades(low: float, high: float, steps: tuple[int, ...] = (1,)) -> list[float]:
    """``steps`` times the powers of ten between two positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for step in steps if low <= (value := step * 10.0**power) <= high]


def points_of(contenders: list[str]) -> list[Artist]:
    """What a legend shows of contenders that are points."""
    return [Line2D([], [], linestyle="", label=name(c), **shape(c)) for c in contenders]


def line_of(what: str) -> Artist:
    return Line2D([], [], color="black", linewidth=1, label=what)


def bars(ax: Axes, labels: list[str], values: dict[str, list[float | None]], form: Callable[[float], str]) -> None:
    """Groups of bars from zero, each with its figure on top."""
    width = min(0.84 / max(1, len(values)), 0.25)
    highest = max((v for column in values.values() for v in column if v is not None), default=1)
    count = len(labels) * len(values)
    style: dict[str, Any] = {"fontsize": 7.5 if count <= 24 else 6.5, "rotation": 0 if count <= 12 else 90}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for i, (contender, column) in enumerate(values.items()):
        for x, value in enumerate(column):
            place = x + (i - (len(values) - 1) / 2) * width
            if value is None:
                ax.text(place, 0.01 * highest, "–", ha="center", va="bottom", fontsize=7, color="#999999")
                continue
            (bar,) = ax.bar(place, value, 0.92 * width, linewidth=0.8, **filling(contender))
            tell(bar, [f"{labels[x]}: {name(contender)} {form(value)}"])
            ax.text(place, value + 0.02 * highest, form(value), ha="center", va="bottom", **style)
    ax.set_xticks(range(len(labels)), labels, fontsize=8.5)
    ax.grid(False, axis="x")
    ax.set_ylim(0, (1.3 if style["rotation"] else 1.2) * highest)  # the figures end within the axes
    ax.set_xlim(-0.6, len(labels) - 0.4)


def compared(rows: list[dict]) -> list[str]:
    """The contenders beside the plain one in the order of a legend, without the forced ones of ours."""
    return [c for c in LOOKS if c != "plain" and any(c in row["contenders"] for row in rows)]


def plotted(ax: Axes, points: Sequence[tuple[float, float, str]], **look) -> list[float]:
    """Draws points ``(x, y, what the picture tells of it)``; returns every y."""
    if not points:
        return []
    x, y, texts = zip(*points, strict=True)
    (line,) = ax.plot(x, y, **{"linestyle": ""} | look)
    tell(line, texts)
    return list(y)


# ------------------------------------------------------------------------------------------------ pictures


def headline(result: dict) -> Figure | None:
    """Training step, explanation and memory of each model, relative to the plain network."""
    rows = [row for row in main_rows(result, "model") if row["measure"] in ("training", "explanation")]
    models = list(dict.fromkeys(row["group"] for row in rows if "plain" in row["contenders"]))
    if not models:
        return None
    contenders = compared(rows)
    found = {(row["group"], row["measure"]): row for row in rows}
    training = [row for model in models if (row := found.get((model, "training")))]
    kept = memory(training[0])[0] if training else ""

    def relative(model: str, measure: str, contender: str) -> float | None:
        row = found.get((model, measure))
        return ratio(row, contender, "plain") if row else None

    def amount(model: str, contender: str) -> float | None:
        held = memory(found[model, "training"])[1] if (model, "training") in found else {}
        return held[contender] / held["plain"] if {contender, "plain"} <= held.keys() else None

    measures = {"training": "training step", "explanation": "explanation"}
    panels = {
        f"{words}:\ntime ÷ plain": {c: [relative(m, measure, c) for m in models] for c in contenders}
        for measure, words in measures.items()
        if any((model, measure) in found for model in models)
    }
    if kept:
        label = f"training step:\n{kept.removesuffix(' for backward')} ÷ plain"
        panels[label] = {c: [amount(m, c) for m in models] for c in contenders}
    handles = [*(Patch(label=name(c), **filling(c)) for c in contenders), line_of("plain network")]
    title = "B-cos networks: cost relative to the plain network of the same shape"
    made, axes = figure(result, len(panels), 1, 1.9, title, handles)
    for ax, (label, values) in zip(axes, panels.items(), strict=True):
        bars(ax, models, values, "{:.2f}".format)
        ax.set_ylabel(label, fontsize=9)
        ax.axhline(1, color="black", linewidth=1)
        ax.set_ylim(0, max(1.15, ax.get_ylim()[1]))
    return made


def layers(result: dict) -> Figure | None:
    """Every layer's time relative to the plain layer, in the order of the networks."""
    measures = [m for m in MEASURES if main_rows(result, "layer", m)]
    if not measures:
        return None
    rows = main_rows(result, "layer")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    rows = sorted(rows, key=lambda row: groups.index(row["group"]))
    places = {workload: x for x, workload in enumerate(dict.fromkeys(row["workload"] for row in rows))}
    contenders = compared(rows)
    handles = [*points_of(contenders), line_of("plain layer")]
    title = "Each layer: time ÷ the plain layer's, lower is better"
    made, axes = figure(result, len(measures), 1, 2.1, title, handles)
    for ax, measure in zip(axes, measures, strict=True):
        values: list[float] = []
        for contender in contenders:
            points = [
                (places[r["workload"]], v, f"{r['workload']}: {name(contender)} {v:.2f}")
                for r in main_rows(result, "layer", measure)
                if (v := ratio(r, contender, "plain"))
            ]
            values += plotted(ax, points, markersize=4.5, zorder=3, **shape(contender))
        ratio_axis(ax, values)
        ax.set_ylabel(f"{MEASURES[measure]}\ntime ÷ plain", fontsize=9)
        ax.set_xlim(-0.7, len(places) - 0.3)
        ax.grid(False, axis="x")
        by_model(ax, rows, places)
    bottom = axes[-1]
    if len(places) <= NAMED:
        bottom.set_xticks(
            list(places.values()), [w.partition("/")[2] or w for w in places], rotation=60, ha="right", fontsize=7.5
        )
    return made


def ratio_axis(ax: Axes, values: list[float]) -> None:
    """A log axis of ratios around the line at 1."""
    ax.axhline(1, color="black", linewidth=1)
    ax.set_yscale("log")
    low, high = min([*values, 0.9]), max([*values, 1.2])
    ax.set_ylim(low / 1.12, high * 1.12)
    close = (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5)
    log_ticks(ax.yaxis, list(close) if high < 2 * low else decades(low, high, (1, 2, 5)))


def by_model(ax: Axes, rows: list[dict], places: dict[str, int]) -> None:
    """Bands with the models' names above them, in as many lines as they need, and no ticks."""
    ax.set_xticks([])
    own: dict[str, list[int]] = {}
    for row in rows:
        own.setdefault(row["group"], []).append(places[row["workload"]])
    ends: list[float] = []  # of the last name in each line, in letters
    for i, (group, at) in enumerate(own.items()):
        if i % 2:
            ax.axvspan(min(at) - 0.5, max(at) + 0.5, color="#f4f4f4", zorder=0)
        middle = (min(at) + max(at)) / 2
        letters = LETTERS * (middle + 0.5) / len(places)
        start = letters - len(group) / 2
        line = next((n for n, end in enumerate(ends) if end < start), len(ends))
        ends[line : line + 1] = [letters + len(group) / 2 + 1]
        ax.annotate(
            group, (middle, 1), xycoords=ax.get_xaxis_transform(), xytext=(0, 2 + 9 * line),
            textcoords="offset points", ha="center", va="bottom", fontsize=7.5,
        )  # fmt: skip


def scaling(result: dict) -> Figure | None:
    """Time over batch and over image size, a panel for each workload and measure."""
    curves: dict[tuple, list[dict]] = {}
    for row in result["rows"]:
        if row.get("scaling"):
            curves.setdefault((row["workload"], row["measure"], row["scaling"]), []).append(row)
    curves = {key: rows for key, rows in curves.items() if len({row[key[2]] for row in rows}) > 1}
    if not curves:
        return None
    columns = min(3, len(curves))
    present = compared([row for rows in curves.values() for row in rows])
    handles = [*points_of(present), line_of("plain")]
    title = "Scaling: time ÷ plain over batch and image size"
    made, axes = figure(result, math.ceil(len(curves) / columns), columns, 2.4, title, handles)
    for ax, ((workload, measure, along), rows) in zip(axes, curves.items(), strict=False):
        rows = sorted(rows, key=lambda row: row[along])
        values: list[float] = []
        for contender in compared(rows):
            points = [
                (row[along], r, f"{along} {row[along]}: {name(contender)} {r:.2f}")
                for row in rows
                if (r := ratio(row, contender, "plain")) is not None
            ]
            values += plotted(ax, points, linestyle=LOOKS[contender].dashes, markersize=4, **shape(contender))
        ratio_axis(ax, values)
        ax.set_xscale("log")
        log_ticks(ax.xaxis, sorted({row[along] for row in rows}))
        if len(rows) > 4:
            ax.tick_params(axis="x", rotation=45)
        ax.set_xlabel("batch" if along == "batch" else "image side, pixels", fontsize=9)
        title = rows[0]["group"] if rows[0]["scope"] == "model" else workload
        ax.set_title(f"{title}\n{measure}", fontsize=8.5)
    for ax in axes[::columns]:
        ax.set_ylabel("time ÷ plain", fontsize=9)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    return made


def roofline(result: dict) -> Figure | None:
    """What every layer reaches below the roof of the device, coloured by its operator."""
    rates = result.get("rates") or {}
    measured = {m: [r for r in main_rows(result, "layer", m) if roof(r, "ours") and operator(r)] for m in MEASURES}
    measured = {m: rows for m, rows in measured.items() if rows}
    if not measured or not rates:
        return None
    kinds = [kind for kind in OPERATORS if any(operator(row) == kind for rows in measured.values() for row in rows)]
    handles = [Line2D([], [], linestyle="", marker=LOOKS["ours"].marker, color=OPERATORS[k], label=k) for k in kinds]
    handles.append(Line2D([], [], linestyle="", marker=LOOKS["plain"].marker, color=PALE, label="plain layers"))
    title = "Roofline: what each layer reaches of the device"
    made, axes = figure(result, 1, len(measured), 3.3, title, [*handles, line_of("roof")])
    rates_seen: list[float] = []
    for ax, (measure, rows) in zip(axes, measured.items(), strict=True):
        for contender, kind in [*(("plain", kind) for kind in kinds), *(("ours", kind) for kind in kinds)]:
            points = [reached(row, contender) for row in rows if operator(row) == kind and roof(row, contender)]
            colour = OPERATORS[kind] if contender == "ours" else PALE
            rates_seen += plotted(ax, points, marker=LOOKS[contender].marker, markersize=3.5, color=colour)
        ridge = rates["FLOP/s"] / rates["bytes/s"]
        intensities = [ridge, *(row["floor"]["flops"] / row["floor"]["bytes"] for row in rows)]
        ends = min(intensities) / 1.5, max(intensities) * 1.5
        x = (ends[0], ridge, ends[1])
        ax.plot(x, [min(rates["FLOP/s"], rates["bytes/s"] * at) for at in x], color="black", linewidth=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        log_ticks(ax.xaxis, decades(*ends))
        ax.set_xlabel("FLOPs per byte", fontsize=9)
        ax.set_title(MEASURES[measure], fontsize=8.5)
    low, high = min(rates_seen) / 1.3, max(*rates_seen, rates["FLOP/s"]) * 1.3
    for ax in axes:
        ax.set_ylim(low, high)
        log_ticks(ax.yaxis, decades(low, high, (1, 2, 5) if high < 100 * low else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: flops_per_second(value)))
        ax.tick_params(axis="y", labelleft=ax is axes[0])
    return made


def reached(row: dict, contender: str) -> tuple[float, float, str]:
    """FLOPs per byte and FLOP/s of a layer, and both in words."""
    floor, time = row["floor"], seconds(row, contender)
    assert time is not None
    rate = floor["flops"] / time
    told = f"{row['workload']}: {name(contender)} {flops_per_second(rate)}, {roof(row, contender):.0%} of the roof"
    return floor["flops"] / floor["bytes"], rate, told


PICTURES: dict[str, Callable[[dict], Figure | None]] = {
    "headline": headline,
    "layers": layers,
    "roofline": roofline,
    "scaling": scaling,
}


def draw(result: dict) -> dict[str, dict[str, bytes]]:
    """Name of a picture -> its PNG and its SVG, by these endings."""
    made = {title: picture(result) for title, picture in PICTURES.items()}
    return {title: {"png": png(found), "svg": svg(found)} for title, found in made.items() if found is not None}
