"""What a run prints: a line for each row, and the list of workloads and contenders."""

from __future__ import annotations

from collections.abc import Iterator

from .contenders import BACKENDS, known
from .results import largest_error, ratio
from .tables import duration, seconds
from .tasks import CURVES, Bench

__all__ = ["HEAD", "line", "listing"]

WIDTHS = (38, 20, 10, 12, 16, 15, 18, 7)
RATIOS = (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"))


def _columns(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


HEAD = _columns(
    ("workload", "measure", "plain", "ours÷plain", "reference÷ours", "compiled÷ours", "error: reference", "ours")
)


def line(row: dict) -> str:
    """A row under :data:`HEAD`: the plain time, paired ratios, largest errors, and which contenders were refused."""
    ratios = ("–" if (r := ratio(row, *pair)) is None else f"{r:.2f}" for pair in RATIOS)
    errors = ("–" if (e := largest_error(row, name)) is None else f"{e:.1e}" for name in ("reference", "ours"))
    point = {"batch": f" ×{row['batch']}", "image": f" {row['image']}²"}.get(row["scaling"], "")
    time = duration(seconds(row, "plain"))
    refused = "".join(f"\n  {name} refused: {reason}" for name, reason in row["refused"].items())
    return _columns((row["workload"] + point, row["measure"], time, *ratios, *errors)) + refused


def listing(bench: Bench) -> Iterator[str]:
    """Lines with the chosen workloads, their measures and the models that share them, and with the contenders."""
    s = bench.settings
    chosen = bench.workloads() if s.layers is not None and s.module is None else []
    if chosen:
        yield f"{len(chosen)} layers, each with {', '.join(s.measures_of('layers'))}:"
        for layer in chosen:
            also = f"  also in {', '.join(layer.models[1:])}" if layer.models[1:] else ""
            yield f"  {layer.name}{also}"
    names = [s.module] if s.module else s.models if s.whole_models else ()
    if names:
        yield f"models, each with {', '.join(s.measures_of('models'))}:"
        yield from (f"  {name}, batch {s.input[0] if s.input else s.batch('models', name)}" for name in names)
    yield f"scaling curves{'' if s.scaling else ' (with --scaling)'}: {', '.join(CURVES)}"
    yield "contenders (by default compiled ones for a sample, and backends of ours where several serve a layer):"
    yield from (f"  {name}" for name in known())
    yield f"backends of ours: {', '.join(BACKENDS)}; device: {s.device.describe()['device']}, {s.dtype}"
