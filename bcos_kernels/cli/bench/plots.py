"""The pictures of a report, as PNG. A picture for which the result has no rows is left out."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from .results import conditions, main_rows, ratio, state
from .tables import MEASURES, memory, seconds

__all__ = ["PICTURES", "draw"]

WIDTH, DPI = 8.3, 200  # inches: as wide as a README's column at 100 pixels an inch
COLOURS = {
    "plain": "#7f7f7f",
    "reference": "#d55e00",
    "compiled": "#56b4e9",
    "compiled plain": "#bdbdbd",
    "compiled ours": "#6f8fc9",
    "ours": "#00539c",
}
MARKERS = {"plain": "s", "reference": "^", "compiled": "D", "compiled plain": "v", "compiled ours": "P", "ours": "o"}
HATCHES = {
    "plain": "",
    "reference": "///",
    "compiled": "...",
    "compiled plain": "xxx",
    "compiled ours": "++",
    "ours": "",
}
LINES: dict[str, Any] = {
    "plain": ":",
    "reference": "--",
    "compiled": "-.",
    "compiled plain": (0, (1, 4)),
    "compiled ours": (0, (6, 1, 1, 1, 1, 1)),
    "ours": "-",
}
"""Contenders differ in shape, hatching and dashes as well as in colour."""
NAMES = {
    "compiled": "torch.compile(reference)",
    "compiled plain": "torch.compile(plain)",
    "compiled ours": "torch.compile(bcos_kernels)",
    "ours": "bcos_kernels",
}
NAMED = 30
"""The most layers whose names fit below an axis."""


def name(contender: str) -> str:
    return NAMES.get(contender, contender)


def figure(result: dict, rows: int, columns: int, height: float, title: str) -> tuple[Figure, list[Axes]]:
    """Axes under a title and above the conditions of the run; ``height`` is that of a row, in inches."""
    left_out = len(result.get("not_measured") or ())
    rest = f"{left_out} rows or contenders were not measured: see the report." if left_out else state(result)
    lines = textwrap.wrap(f"{conditions(result, code='')}. {rest}", 135)
    bottom, top = 0.16 * len(lines) + 0.1, 0.4
    total = rows * height + bottom + top
    room = (0, bottom / total, 1, 1 - (bottom + top) / total)
    made = Figure((WIDTH, total), layout=ConstrainedLayoutEngine(rect=room, wspace=0.06, hspace=0.06))
    made.text(0.012, 1 - 0.1 / total, title, va="top", fontsize=12, fontweight="bold")
    made.text(0.012, 0.06 / total, "\n".join(lines), va="bottom", fontsize=7.5, color="#555555")
    axes = [made.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e5e5e5", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
    return made, axes


def shape(contender: str) -> dict:
    """How a contender's points look; ours is filled."""
    colour = COLOURS[contender]
    filled = colour if contender == "ours" else "none"
    return {"marker": MARKERS[contender], "markeredgecolor": colour, "markerfacecolor": filled, "color": colour}


def filling(contender: str) -> dict:
    """How a contender's bars look."""
    colour, hatch = COLOURS[contender], HATCHES[contender]
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


def legend(ax: Axes, contenders: list[str], extra: tuple = (), **place) -> None:
    handles = [Line2D([], [], linestyle="", label=name(c), **shape(c)) for c in contenders]
    ax.legend(handles=[*handles, *extra], fontsize=8.5, frameon=False, handletextpad=0.4, **place)


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
            ax.bar(place, value, 0.92 * width, linewidth=0.8, **filling(contender))
            ax.text(place, value + 0.02 * highest, form(value), ha="center", va="bottom", **style)
    ax.set_xticks(range(len(labels)), labels, fontsize=8.5)
    ax.grid(False, axis="x")
    ax.set_ylim(0, 1.2 * highest)
    ax.set_xlim(-0.6, len(labels) - 0.4)


def bar_legend(ax: Axes, contenders: list[str], extra: tuple = (), **place) -> None:
    patches = [Patch(label=name(c), **filling(c)) for c in contenders]
    ax.legend(handles=[*patches, *extra], fontsize=8.5, frameon=False, **place)


def compared(rows: list[dict], *, plain: bool) -> list[str]:
    """The contenders of the rows in the order of a legend, without the forced ones of ours."""
    return [c for c in COLOURS if (plain or c != "plain") and any(c in row["contenders"] for row in rows)]


# ------------------------------------------------------------------------------------------------ pictures


def headline(result: dict) -> Figure | None:
    """Training step, explanation and memory of each model, relative to the plain network."""
    rows = [row for row in main_rows(result, "model") if row["measure"] in ("training", "explanation")]
    models = list(dict.fromkeys(row["group"] for row in rows if "plain" in row["contenders"]))
    if not models:
        return None
    contenders = compared(rows, plain=False)
    found = {(row["group"], row["measure"]): row for row in rows}
    training = [row for model in models if (row := found.get((model, "training")))]
    kept = memory(training[0])[0] if training else ""
    made, axes = figure(
        result, 3 if kept else 2, 1, 1.9, "B-cos networks: cost relative to the plain network of the same shape"
    )

    def relative(model: str, measure: str, contender: str) -> float | None:
        row = found.get((model, measure))
        return ratio(row, contender, "plain") if row else None

    def amount(model: str, contender: str) -> float | None:
        held = memory(found[model, "training"])[1] if (model, "training") in found else {}
        return held[contender] / held["plain"] if {contender, "plain"} <= held.keys() else None

    for ax, measure, words in zip(axes, ("training", "explanation"), ("training step", "explanation"), strict=False):
        bars(ax, models, {c: [relative(m, measure, c) for m in models] for c in contenders}, "{:.2f}".format)
        ax.set_ylabel(f"{words}:\ntime ÷ plain", fontsize=9)
    if kept:
        bars(axes[2], models, {c: [amount(m, c) for m in models] for c in contenders}, "{:.2f}".format)
        axes[2].set_ylabel(f"training step:\n{kept.removesuffix(' for backward')} ÷ plain", fontsize=9)
    for ax in axes:
        ax.axhline(1, color="black", linewidth=1)
        ax.set_ylim(0, max(1.15, ax.get_ylim()[1]))
    line = Line2D([], [], color="black", linewidth=1, label="plain network")
    bar_legend(axes[0], contenders, (line,), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(contenders) + 1)
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
    contenders = compared(rows, plain=False)
    made, axes = figure(result, len(measures), 1, 2.1, "Each layer: time ÷ the plain layer's, lower is better")
    for ax, measure in zip(axes, measures, strict=True):
        values = []
        for contender in contenders:
            points = [
                (places[r["workload"]], v)
                for r in main_rows(result, "layer", measure)
                if (v := ratio(r, contender, "plain"))
            ]
            if points:
                ax.plot(*zip(*points, strict=True), linestyle="", markersize=4.5, zorder=3, **shape(contender))
                values += [value for _, value in points]
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
    line = Line2D([], [], color="black", linewidth=1, label="plain layer")
    legend(axes[0], contenders, (line,), loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=len(contenders) + 1)
    return made


def ratio_axis(ax: Axes, values: list[float]) -> None:
    """A log axis of ratios around the line at 1."""
    ax.axhline(1, color="black", linewidth=1)
    ax.set_yscale("log")
    low, high = min([*values, 0.9]), max([*values, 1.2])
    ax.set_ylim(low / 1.12, high * 1.12)
    ticks = [
        v for v in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100) if low / 1.12 <= v <= high * 1.12
    ]
    log_ticks(ax.yaxis, ticks)


def by_model(ax: Axes, rows: list[dict], places: dict[str, int]) -> None:
    """Bands with the models' names above them, and no ticks."""
    ax.set_xticks([])
    own: dict[str, list[int]] = {}
    for row in rows:
        own.setdefault(row["group"], []).append(places[row["workload"]])
    for i, (group, at) in enumerate(own.items()):
        if i % 2:
            ax.axvspan(min(at) - 0.5, max(at) + 0.5, color="#f4f4f4", zorder=0)
        text = "\n".join(textwrap.wrap(group, max(8, round(105 * len(set(at)) / len(places)))))
        middle = (min(at) + max(at)) / 2
        ax.text(middle, 1.01, text, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7.5)


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
    made, axes = figure(
        result, math.ceil(len(curves) / columns), columns, 2.6, "Scaling: time over batch and image size"
    )
    present = set()
    for ax, ((workload, measure, along), rows) in zip(axes, curves.items(), strict=False):
        rows = sorted(rows, key=lambda row: row[along])
        for contender in compared(rows, plain=True):
            points = [(row[along], 1e3 * t) for row in rows if (t := seconds(row, contender))]
            ax.plot(*zip(*points, strict=True), linestyle=LINES[contender], markersize=4, **shape(contender))
            present.add(contender)
        ax.set_xscale("log")
        ax.set_yscale("log")
        log_ticks(ax.xaxis, sorted({row[along] for row in rows}))
        if len(rows) > 6:
            ax.tick_params(axis="x", rotation=45)
        low, high = ax.get_ylim()
        log_ticks(ax.yaxis, decades(low, high, (1, 2, 5) if high < 100 * low else (1,)))
        ax.set_xlabel("batch" if along == "batch" else "image side, pixels", fontsize=9)
        title = rows[0]["group"] if rows[0]["scope"] == "model" else workload
        ax.set_title(f"{title}\n{measure}", fontsize=8.5)
    for ax in axes[::columns]:
        ax.set_ylabel("time, ms", fontsize=9)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    legend(axes[0], [c for c in COLOURS if c in present], loc="upper left")
    return made


PICTURES: dict[str, Callable[[dict], Figure | None]] = {
    "headline": headline,
    "layers": layers,
    "scaling": scaling,
}


def draw(result: dict) -> dict[str, bytes]:
    """Name of a picture -> PNG."""
    found = {}
    for title, picture in PICTURES.items():
        made = picture(result)
        if made is not None:
            written = io.BytesIO()
            made.savefig(written, format="png", dpi=DPI, metadata={"Software": None})
            found[title] = written.getvalue()
    return found
