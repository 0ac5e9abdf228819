"""``python -m benchmarks.cpu_layers``: times every layer on this CPU and stores the result."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

import bcos_kernels

from . import contenders as c
from .models import resnet50_step, saved_by_stack
from .timing import interleave, keep_pages_warm, ratios, summarise
from .workloads import BATCH, Layer, layers

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cpu_layers.json"
COMPARED = (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"))
COMPILED = r"k[37]s1|k1s1-(64|256|1024)$|dw7|vit_s"
"""Layers that torch.compile takes part in: every kind and size, not all: each takes 5 to 10 seconds."""


def machine() -> dict:
    """The CPU, its cores, and the threads in use."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        cpu = found.group(1) if found else platform.processor()
    except OSError:
        cpu = platform.processor()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str | None:
    """The commit that is checked out, with ``+changes`` where files differ; None outside of a repository."""
    git = ("git", "-C", str(ROOT))
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if changed.strip() else "")


def header(arguments: argparse.Namespace) -> dict:
    """Everything beside the figures."""
    command = "python -m benchmarks.cpu_layers " + shlex.join(arguments.argv)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": {
            "bcos_kernels": bcos_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "command": command.strip(),
        "settings": {
            "batch": BATCH,
            "dtype": "float32",
            "memory_format": "channels_last",
            "seconds": arguments.seconds,
            "pages_warm": keep_pages_warm(),
        },
        "complete": False,
    }


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


def store(result: dict, path: Path) -> None:
    """Replaces the file in one step, so that an interruption never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


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
