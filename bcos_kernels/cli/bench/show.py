"""What a run prints: a line for each row, and the list of workloads, measures and contenders."""

from __future__ import annotations

from collections.abc import Iterator

from ...text import wrapped
from .contenders import possible
from .results import CONTENDERS, ratio
from .tables import duration, seconds
from .tasks import CURVES, Bench

__all__ = ["HEAD", "line", "listing"]

WIDTHS = (33, 19, 9, 6, 6, 6)
RATIOS = (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"))
MEASURES = {
    "forward": "the output of a layer, without a graph",
    "explanation": "the output, and a gradient at the input with every scale frozen",
    "training": "forward and backward of a layer, or a model's step of SGD",
    "inference": "the output of a model, without a graph",
    "class explanations": "the explanations of 5 classes with one graph",
    "explanation loss": "a step of SGD on a loss that contains the explanation",
    "explained batch": "weights, contributions and pictures of 8 images",
    "explained grids": "the same of 4 images and 9 classes, as GridPG needs them",
    "further classes": "the backwards of 8 classes of 4 images, with a graph that is there",
}


def _columns(cells: tuple[str, ...]) -> str:
    """Cells side by side; those from the third on are numbers, and one that is too wide has a line of its own."""
    name, *others = cells
    own_line = [name] if len(name) >= WIDTHS[0] else []
    padded = [f"{'' if own_line else name:<{WIDTHS[0]}}{others[0]:<{WIDTHS[1]}}"]
    padded += [f"{cell:>{width}}" for cell, width in zip(others[1:], WIDTHS[2:], strict=True)]
    return "\n".join([*own_line, "".join(padded).rstrip()])


HEAD = "plain: its time; ours: ÷ plain; ref., comp.: the reference and compiled ÷ ours\n" + _columns(
    ("workload", "measure", "plain", "ours", "ref.", "comp.")
)


def line(row: dict) -> str:
    """A row under :data:`HEAD`: the plain time, paired ratios, and which contenders were refused."""
    ratios = ("–" if (r := ratio(row, *pair)) is None else f"{r:.{2 if r < 100 else 0}f}" for pair in RATIOS)
    point = {"batch": f" ×{row['batch']}", "image": f" {row['image']}²"}.get(row["scaling"], "")
    refused = "".join(f"\n{wrapped(f'  {name} refused: {reason}')}" for name, reason in row["refused"].items())
    return _columns((row["workload"] + point, row["measure"], duration(seconds(row, "plain")), *ratios)) + refused


def listing(bench: Bench) -> Iterator[str]:
    """Lines with the chosen workloads, and with the measures and the contenders that this machine can run."""
    s = bench.settings
    measures: dict[str, None] = {}
    if chosen := bench.workloads() if s.layers is not None and s.module is None else []:
        measures |= dict.fromkeys(s.measures_of("layers"))
        yield wrapped(
            f"{len(chosen)} layers, named MODEL/ROWS-IN-OUT (linear), MODEL/HxW-IN-kKsS-OUT (a convolution of K x K "
            "with stride S; gGk: in G groups, dwK: depthwise) and MODEL/norm-HxW-CHANNELS:"
        )
        for layer in chosen:
            also = f"  also in {', '.join(layer.models[1:])}" if layer.models[1:] else ""
            yield wrapped(f"  {layer.name}{also}")
    if names := [s.module] if s.module else s.models if s.whole_models else ():
        measures |= dict.fromkeys(s.measures_of("models"))
        yield "models:"
        yield from (f"  {name}, batch {s.input[0] if s.input else s.batch('models', name)}" for name in names)
    yield wrapped(f"scaling curves{'' if s.scaling else ' (with --scaling)'}: {', '.join(CURVES)}")
    yield "measures:"
    yield from (wrapped(f"  {name}: {MEASURES[name]}") for name in measures)
    yield f"contenders that can run here ({s.device.describe()['device']}, {s.dtype}):"
    for name in possible(s.device.name):
        told = CONTENDERS.get(name) or f"ours, by {' with '.join(name.split('/')[1:])} alone where that serves a layer"
        yield wrapped(f"  {name}: {told}")
