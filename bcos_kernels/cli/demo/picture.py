"""What the demo finds, and its picture: explained digits and photographs, the curves and the bars."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .converting import Fine
from .explaining import Explained, summary
from .training import Training

__all__ = ["ENDINGS", "Results", "draw"]

ENDINGS = sorted(FigureCanvasBase.filetypes)
"""Of the pictures that can be written."""

NAMES = "reference", "accelerated"
COLOURS = "#7a8794", "#e4572e"


@dataclass(frozen=True)
class Results:
    """Everything that the table and the picture show; pairs are (reference, accelerated)."""

    trainings: tuple[Training, Training]
    digits: list[Explained]
    models: dict[str, Explained]
    """Name of a full-size model with random weights -> its explanation of a photograph."""
    photographs: dict[str, Fine]
    """Name -> explanations by a network that was converted and fine-tuned."""

    @property
    def explained(self) -> dict[str, list[Explained]]:
        """Every explanation by the model that gave it."""
        return {"digits, ResNet-18": self.digits, **{f"photo, {k}": [v] for k, v in self.models.items()}}


def draw(results: Results, path: Path) -> None:
    """Writes the picture of ``results`` to ``path``; its suffix names the format."""
    figure = Figure(figsize=(13, 15.2), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.06, hspace=0.02))
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=(4.1, 6.9, 4.2))[:, 0]
    draw_digits(top, results)
    draw_photographs(middle, results)
    draw_bars(bottom, results)
    figure.savefig(path, facecolor="white")


def show(axes, pixels, **colours) -> None:
    axes.imshow(pixels, interpolation="nearest", **colours)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d0d0")


def pixels_of(explained: Explained):
    """The image's colours, without their complements: ``[H, W, 3]``."""
    return explained.image[0, :3].permute(1, 2, 0).numpy()


def draw_digits(figure, results: Results) -> None:
    digits, steps = results.digits, len(results.trainings[0].losses)
    title = f"Test digits explained by the ResNet-18 after {steps} steps of training"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    grid = figure.subplots(3, len(digits), squeeze=False)
    for column, explained in enumerate(digits):
        for row, pixels in enumerate((pixels_of(explained), *explained.pictures)):
            show(grid[row, column], pixels)
    for axes, label in zip(grid[:, 0], ("image", *NAMES), strict=True):
        axes.set_ylabel(label, fontsize=12)


def draw_photographs(figure, results: Results) -> None:
    title = "Photographs explained by a network that was trained on patches of them, converted and fine-tuned"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    names = list(results.photographs)
    grid = figure.subplots(len(names), 1 + len(names), squeeze=False)
    for row, (name, fine) in enumerate(results.photographs.items()):
        show(grid[row, 0], fine.image.permute(1, 2, 0).clamp(0, 1).numpy())
        for axes, contributions in zip(grid[row, 1:], fine.contributions, strict=False):
            limit = float(contributions.abs().quantile(0.995))
            show(axes, contributions.numpy(), cmap="bwr", vmin=-limit, vmax=limit)
        show(grid[row, -1], fine.picture)
        grid[row, 0].set_ylabel(name, fontsize=12)
    headings = ["photograph", *(f"for (red) and against {name}" for name in names[:-1]), "weights, in colours"]
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=12)


def draw_bars(figure, results: Results) -> None:
    figure.suptitle("The trainings and the costs", fontsize=14, fontweight="bold")
    curves, times, sizes = figure.subplots(1, 3, width_ratios=(4.2, 5.2, 2.4))
    for training, name, colour, style in zip(results.trainings, NAMES, COLOURS, ("-", "--"), strict=True):
        curves.plot(range(1, len(training.losses) + 1), training.losses, style, color=colour, label=name)
    curves.set(title="loss of each step, digits", xlabel="step", yscale="log")
    curves.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    curves.legend(frameon=False)
    groups = {"training step,\ndigits,\nResNet-18": [statistics.median(t.seconds) for t in results.trainings]}
    for name, explained in results.explained.items():
        groups["explanation,\n" + name.replace(", ", ",\n")] = list(summary(explained)["seconds"])
    bars(times, "time (reference = 1)", groups, lambda seconds: f"{1e3 * seconds:.0f} ms")
    saved = {"training step,\ndigits,\nResNet-18": [t.saved for t in results.trainings]}
    bars(sizes, "bytes kept (reference = 1)", saved, lambda size: f"{size / 2**20:.0f} MiB")


def bars(axes, title: str, groups: Mapping[str, Sequence[float]], write: Callable[[float], str]) -> None:
    """Two bars for each entry of ``groups``, relative to the first; on top their values, by ``write``."""
    for i, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        places = [place + (i - 0.5) * 0.44 for place in range(len(groups))]
        heights = [pair[i] / pair[0] for pair in groups.values()]
        drawn = axes.bar(places, heights, 0.42, color=colour, label=name)
        axes.bar_label(drawn, [write(pair[i]) for pair in groups.values()], fontsize=8, padding=2)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=9)
    axes.set_title(title)
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
