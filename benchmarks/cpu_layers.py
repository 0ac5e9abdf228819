"""``python -m benchmarks.cpu_layers``: times every layer on this CPU and stores the result."""

from __future__ import annotations

import argparse
import gc
import re
import shlex
import sys
from pathlib import Path

import torch

from . import contenders as c
from . import stored
from .devices import machine
from .models import resnet50_step, saved_by_stack
from .stored import RESULTS, ROOT, store
from .timing import interleave, keep_pages_warm, ratios, summarise
from .workloads import BATCH, Layer, layers

__all__ = ["main"]

RESULT = RESULTS / "cpu_layers.json"
COMPARED = (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"))
COMPILED = r"k[37]s1|k1s1-(64|256|1024)$|dw7|vit_s"
"""Layers that torch.compile takes part in: every kind and size, not all: each takes 5 to 10 seconds."""


def header(arguments: argparse.Namespace) -> dict:
    """Everything beside the figures."""
    settings = {
        "batch": BATCH,
        "dtype": "float32",
        "memory_format": "channels_last",
        "seconds": arguments.seconds,
        "pages_warm": keep_pages_warm(),
    }
    return stored.header("python -m benchmarks.cpu_layers " + shlex.join(arguments.argv), machine(), settings)


def measure(layer: Layer, seconds: float, compile_too: bool) -> list[dict]:
    """One row for each measure of a layer; torch.compile takes part in training, whose goal names it."""
    torch.manual_seed(0)
    contenders = c.build(layer, compile_too)
    rows = []
    for name in c.MEASURES:
        taking_part = {k: m for k, m in contenders.items() if k != "compiled" or name == "training"}
        calls, refused = c.timed(layer, taking_part, name)
        times = interleave(calls, seconds)
        rows.append(
            {
                "layer": layer.name,
                "group": layer.group,
                "measure": name,
                "seconds": {k: summarise(samples) for k, samples in times.items()},
                "ratios": {f"{a}/{b}": ratios(times[a], times[b]) for a, b in COMPARED if a in times and b in times},
                "refused": refused,
            }
        )
    return rows


def show(row: dict) -> None:
    """One line for one row."""
    figures = "  ".join(f"{k} {v['p50']:.2f}" for k, v in row.get("ratios", {}).items())
    refused = "; ".join(f"{k} refused: {v}" for k, v in row.get("refused", {}).items())
    print(f"{row.get('layer', row.get('model')):<34}{row['measure']:<14}{figures}  {refused}", flush=True)


def benchmark(result: dict, arguments: argparse.Namespace) -> None:
    """Fills ``result``, and the file after each layer."""
    chosen = layers(arguments.layers)
    if not chosen:
        sys.exit(f"--layers {arguments.layers!r} matches no layer")
    result["layers"] = []
    for layer in chosen:
        compile_too = not arguments.no_compile and re.search(COMPILED, layer.name) is not None
        rows = measure(layer, arguments.seconds, compile_too)
        result["layers"] += rows
        store(result, arguments.out)
        for row in rows:
            show(row)
        gc.collect()
    result["saved"] = saved_by_stack()
    store(result, arguments.out)
    print(f"bytes saved by a stack of layers, ours / plain: {result['saved']['ours/plain']:.3f}", flush=True)
    if not arguments.no_models:
        result["models"] = [resnet50_step(10 * arguments.seconds)]
        show(result["models"][0])
    result["complete"] = True


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 130 if it was interrupted, after storing what was measured until then."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_layers")
    parser.add_argument("--layers", default="", metavar="REGEX", help="layers whose name matches (default all)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer and measure (default 1)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile(reference) out")
    parser.add_argument("--no-models", action="store_true", help="leave the ResNet-50 training step out")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"(default {RESULT.relative_to(ROOT)})")
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    result = header(arguments)
    try:
        benchmark(result, arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        store(result, arguments.out)
        print(f"stored in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
