"""``python -m benchmarks.decisions``: the ways of the backend ``cuda`` beside the plain layer, timed on a GPU in turn.

For typical layers and every direction: the vendor's own product through torch, and each candidate that serves the call,
with the plans of cuDNN compiled first. Results are compared before they are timed; one that differs by more than
rounding is refused. The table says which way is fastest, and whether the graphs are worth their compilation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

from bcos_kernels.cli.bench.devices import Gpu
from bcos_kernels.cli.bench.stored import header, store
from bcos_kernels.cli.bench.workloads import Layer
from bcos_kernels.cli.measure import geomean
from bcos_kernels.cli.terminal import at_least
from bcos_kernels.core import choice
from bcos_kernels.core.candidate import DIRECTIONS
from bcos_kernels.core.device import architecture_of
from bcos_kernels.gpu import timing
from bcos_kernels.gpu.timing import Noted
from bcos_kernels.text import aligned
from bcos_kernels.transform import TRANSFORM, Call

from .command import Parser
from .triton_aot import call_of, selected

__all__ = ["LAYERS", "main", "measured", "report", "table"]

LAYERS = (
    r"resnet50/(56x56-(64-k3s1-64|256-k1s1-64|64-k1s1-256)|14x14-(256-k3s1-256|1024-k1s1-256)|7x7-512-k3s1-512"
    r"|56x56-128-k3s2-128)|vit_s/\d+-384-1536"
)
"""Each kind of layer: bound by memory and by arithmetic, of one tap and of nine, strided, and linear."""
BACKEND = "cuda"
WAYS = tuple(candidate.name for candidate in TRANSFORM.candidates_of(BACKEND))


def plain(call: Call, direction: str, device: torch.device) -> Callable[[], object]:
    """The products of the plain layer: one forward, one for the gradient of x, or both of a backward."""
    (x, weight, *_), grad = call.example(device)
    training = direction == "training"
    if call.is_linear:
        products = {
            "forward": lambda: x @ weight.t(), "explanation": lambda: grad @ weight,
            "training": lambda: (grad @ weight, grad.t() @ x),
        }  # fmt: skip
        return products[direction]
    window = (call.stride, call.padding, call.dilation, False, (0, 0), call.groups)
    if direction == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *window)
    wanted = (True, training, False)
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *window, wanted)


def measured(layers: list[Layer], arch: str, device: torch.device, end: float) -> Iterator[dict]:
    """A row for each layer and direction until ``end``, as ``time.monotonic`` counts; times are in seconds."""
    calls = {layer.name: call_of(layer, arch) for layer in layers}
    noted = [
        (name, Noted(TRANSFORM, BACKEND, call, "forward").of(direction))
        for name, call in calls.items()
        for direction in DIRECTIONS
    ]
    start = time.monotonic()
    timing.compile_all(timing.compiled(what for _, what in noted), device, lambda: None)
    print(f"plans compiled in {time.monotonic() - start:.1f} s", flush=True)
    for name, what in noted:
        if time.monotonic() < end:
            yield _row(name, what, device)


def _row(name: str, what: Noted, device: torch.device) -> dict:
    beside = [plain(what.call, what.direction, device)]
    trials, times = timing.measure_beside(what, device, lambda: None, beside)
    ways: dict[str, float] = {}
    for trial in trials:
        if trial.seconds is not None:
            ways[trial.candidate.name] = min(trial.seconds, ways.get(trial.candidate.name, trial.seconds))
    refused = {str(trial.candidate): trial.refusal for trial in trials if trial.refusal is not None}
    row = {"layer": name, "direction": what.direction, "plain": times[0] if times else None, "ways": ways}
    predicted = choice.predicted(*what).candidate.name
    return row | {"fastest": min(ways, key=ways.__getitem__, default=None), "predicted": predicted, "refused": refused}


def table(rows: Iterable[dict]) -> str:
    """The rows in µs, what was refused, and the ratios to plain with and without graphs."""
    rows = list(rows)
    lines = [("layer", "direction", "plain", *WAYS, "fastest", "÷ plain", "predicted")]
    for row in rows:
        known = {"plain": row["plain"]} | row["ways"]
        cells = (f"{1e6 * known[way]:.1f}" if known.get(way) else "–" for way in ("plain", *WAYS))
        ratio = _ratio(row, WAYS)
        told = (row["fastest"] or "–", f"{ratio:.2f}" if ratio else "–", row["predicted"])
        lines.append((row["layer"], row["direction"], *cells, *told))
    parts = ["times in µs", aligned(lines)]
    parts += [
        f"refused, {r['direction']} of {r['layer']}: {way}: {why}" for r in rows for way, why in r["refused"].items()
    ]
    for direction in DIRECTIONS:
        ratios = {
            kind: [r for row in rows if row["direction"] == direction and (r := _ratio(row, ways))]
            for kind, ways in (("with", WAYS), ("without", tuple(w for w in WAYS if w != "graph")))
        }
        if all(ratios.values()):
            means = ", ".join(f"{geomean(found):.2f} {kind} graphs" for kind, found in ratios.items())
            parts.append(f"{direction}, fastest ÷ plain, geometric mean of {len(ratios['with'])}: {means}")
    return "\n".join(parts)


def _ratio(row: dict, ways: tuple[str, ...]) -> float | None:
    """The fastest of these ways ÷ the plain layer."""
    times = [seconds for way, seconds in row["ways"].items() if way in ways]
    return min(times) / row["plain"] if times and row["plain"] else None


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns 1 where a result was wrong or failed, which no refusal by cuDNN is."""
    parser = Parser(__doc__)
    parser.add_argument("--layers", default=LAYERS, metavar="REGEX", help="layers whose name matches (default typical)")
    parser.add_argument(
        "--seconds", type=at_least(1, float), metavar="S", default=300.0, help="no row starts later (default 300)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="store the figures as JSON, too, after each row")
    arguments = parser.parsed(argv)
    end = time.monotonic() + arguments.seconds
    if not torch.cuda.is_available():
        parser.error("no GPU here, and nothing else is timed")
    layers, device = selected(arguments.layers), torch.device("cuda", torch.cuda.current_device())
    if not layers:
        parser.error(f"--layers {arguments.layers!r} matches no layer")
    torch.backends.cudnn.benchmark = True  # the plain layer by its fastest algorithm, and so the candidate vendor
    result = header(arguments.command, Gpu().describe(), {"dtype": "bf16"})
    found = measured(layers, architecture_of(device), device, end)
    return report(result, found, len(DIRECTIONS) * len(layers), arguments.out)


def report(result: dict, found: Iterable[dict], wanted: int, out: Path | None) -> int:
    """Stores the rows as they come and prints the table; the exit status of :func:`main`."""
    rows: list[dict] = []
    with suppress(KeyboardInterrupt):  # of whoever has no more time: the rows before are worth their table
        for row in found:
            rows.append(row)
            if out is not None:
                store(result | {"rows": rows, "complete": len(rows) == wanted}, out)
    print(table(rows))
    if len(rows) < wanted:
        print(f"{len(rows)} of {wanted} in time")
    wrong = [way for row in rows for way, why in row["refused"].items() if not why.startswith("cuDNN")]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
