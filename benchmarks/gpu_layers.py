"""``python -m benchmarks.gpu_layers``: times every layer on this GPU and stores the result."""

from __future__ import annotations

import argparse
import gc
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

from . import contenders as c
from . import host_time, stored
from .cpu_layers import show
from .devices import Cpu, Gpu
from .models import saved_by_stack, stacks
from .report import table
from .stored import RESULTS, ROOT, store
from .timing import interleave, ratios, summarise
from .workloads import Layer, layers

__all__ = ["main"]

RESULT = RESULTS / "gpu_layers.json"
MEASURES = ("forward", "explanation", "training")
CANDIDATES = ("one-pass", "semi", "vendor")
COMPARED = (("ours", "plain"), ("reference", "ours"), ("compiled", "ours"), *((name, "plain") for name in CANDIDATES))
BATCH, VIT_BATCH = 256, 64
CHECKED = 8
"""Images, spread over the batch, that the parity check compares."""
COMPILED = (
    r"resnet50/(56x56-(64-k3s1-64|64-k1s1-256|256-k1s1-64)|14x14-(1024-k1s1-256|256-k3s1-256)|7x7-512-k3s1-512)$"
    r"|vit_s/\d+-(384-1536|1536-384)$|convnext_t/(56x56-96|14x14-384)-dw7"
)
"""Layers that torch.compile takes part in, forward and training: every kind, not all, each takes 10 to 20 seconds."""
WARM_UP_BYTES = 8 << 30  # of GPU memory for each process that compiles


def chosen_layers(arguments: argparse.Namespace) -> list[Layer]:
    """What is timed, most important first."""
    return layers(arguments.layers, arguments.batch, max(1, arguments.batch * VIT_BATCH // BATCH), others=True)


def floor(layer: Layer, measure: str, like: Tensor, y: Tensor, rates: dict[str, float]) -> float:
    """Seconds of the plain layer's traffic or of its products, whichever is longer, at the rates of this device.

    Forward reads x and w and writes y; dx and dw move as much. ``training`` is all three, ``explanation`` dx alone.
    """
    weight = layer.out_features * layer.taps
    moved = (torch.Size(layer.input_shape).numel() + weight + y.numel()) * like.element_size()
    once = max(moved / rates["bytes/s"], 2 * y.numel() * layer.taps / rates["FLOP/s"])
    return 3 * once if measure == "training" else once


class Bench:
    """One run: the device, the arguments and the result that is being filled."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = Gpu() if arguments.device == "cuda" else Cpu()
        self.like = torch.empty(0, device=arguments.device, dtype=getattr(torch, arguments.dtype))
        self.candidates = () if arguments.no_candidates else CANDIDATES
        self.made: dict[str, dict] = {}

    def around(self, name: str):
        """Forces a candidate, and notes the choice of ours."""
        if not self.candidates or name not in ("ours", *CANDIDATES):
            return nullcontext()
        noting = c.forced(None if name == "ours" else name)
        return _Noted(noting, self.made, name)

    def calls(self, layer: Layer, contenders: dict, measure: str):
        """``(calls, refused, choices)`` of the contenders that the measure has, the others left out."""
        taking_part = {k: m for k, m in contenders.items() if not (k == "compiled" and measure == "explanation")}
        every = max(1, layer.input_shape[0] // CHECKED)
        self.made.clear()
        calls, refused = c.timed(layer, taking_part, measure, self.like, every, True, self.around)
        choices = {name: made[measure] for name, made in self.made.items() if measure in made}
        for name in CANDIDATES:
            if name not in choices or choices[name][1].candidate != name:
                calls.pop(name, None)
        return calls, refused, choices

    def measure(self, layer: Layer, rates: dict[str, float]) -> list[dict]:
        """A row for each measure."""
        torch.manual_seed(0)
        contenders = self.build(layer)
        rows = []
        for name in MEASURES:
            calls, refused, choices = self.calls(layer, contenders, name)
            times = interleave(calls, self.arguments.seconds, clock=self.device.time)
            with torch.no_grad():
                y = contenders["plain"](layer.input(self.like))
            rows.append(
                {
                    "layer": layer.name,
                    "group": layer.group,
                    "measure": name,
                    "seconds": {k: summarise(samples) for k, samples in times.items()},
                    "ratios": {f"{a}/{b}": ratios(times[a], times[b]) for a, b in COMPARED if {a, b} <= times.keys()},
                    "floor": floor(layer, name, self.like, y, rates),
                    "choice": in_words(choices.get("ours")),
                    "refused": refused,
                }
            )
        return rows

    def build(self, layer: Layer) -> dict:
        torch._dynamo.reset()  # each layer compiles the same code: a limit on how often counts
        compile_too = not self.arguments.no_compile and re.search(COMPILED, layer.name) is not None
        return c.build(layer, compile_too, self.like, self.candidates)

    def warm_up(self) -> None:
        """Compiles what a share of the layers needs, for the caches on disk; times nothing."""
        here, of = map(int, self.arguments.warm_up.split("/"))
        for layer in chosen_layers(self.arguments)[here::of]:
            contenders = self.build(layer)
            with suppress(RuntimeError):  # the measurement meets it again, and says so
                for name in MEASURES:
                    self.calls(layer, contenders, name)
            del contenders
            gc.collect()

    def memory(self, size: int = 28) -> dict[str, dict]:
        """Bytes saved by a stack of layers, and the most that its training step allocates."""
        found = {"saved": saved_by_stack(size, self.arguments.batch // 4 or 1, self.like)}
        x, contenders = stacks(size, self.arguments.batch // 4 or 1, self.like)
        peaks = {}
        for name, module in contenders.items():

            def step(module=module):
                module(x).float().square().mean().backward()
                module.zero_grad()

            step()
            peaks[name] = self.device.peak(step)
        if None not in peaks.values():
            found["peak"] = peaks | {"ours/plain": peaks["ours"] / peaks["plain"]}
        return found

    def host(self) -> list[dict]:
        """Microseconds per call above the plain layer's, on inputs too small to compute on."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rows = []
        for what, (layer, plain, x) in host_time.pairs(self.arguments.device).items():
            figures = host_time.measure(layer, plain, x, self.arguments.seconds)
            for name, (own, above) in zip(host_time.MEASURES, figures, strict=True):
                rows.append({"layer": what, "measure": name, "plain": own, "above": above})
        torch.set_num_threads(threads)
        return rows


def in_words(made: tuple | None) -> dict | None:
    """A choice as it is stored."""
    if made is None:
        return None
    choice = made[1]
    return {"candidate": choice.candidate, "tile": choice.tile and str(choice.tile), "reason": choice.reason}


class _Noted:
    """A context whose value is kept under a name, entered again for each call."""

    def __init__(self, context, kept: dict, name: str) -> None:
        self.context, self.kept, self.name = context, kept, name

    def __enter__(self) -> None:
        self.chosen = self.context.__enter__()

    def __exit__(self, *error) -> None:
        self.context.__exit__(*error)
        self.kept.setdefault(self.name, {}).update(self.chosen)


def compile_all(arguments: argparse.Namespace, deadline: float) -> str:
    """Processes that fill the compilers' caches, a share of the layers each; returns how it went."""
    room = torch.cuda.mem_get_info()[0] // WARM_UP_BYTES
    processes = max(1, min(arguments.processes, room, len(chosen_layers(arguments))))
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_layers", *arguments.argv, "--warm-up"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, f"{i}/{processes}"], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        for i in range(processes)
    ]
    stopped = 0
    try:
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            stopped += process.returncode is None
    finally:
        for process in running:
            process.kill()
            process.wait()
    failed = sum(process.returncode != 0 for process in running) - stopped
    return f"{processes} processes, {time.monotonic() - start:.0f} s, {stopped} stopped by the clock, {failed} failed"


def benchmark(result: dict, bench: Bench) -> None:
    """Fills ``result``, and the file after each layer, until the time is used up."""
    arguments = bench.arguments
    deadline = time.monotonic() + arguments.budget
    chosen = chosen_layers(arguments)
    if not chosen:
        sys.exit(f"--layers {arguments.layers!r} matches no layer")
    result |= {"layers": [], "not_measured": [layer.name for layer in chosen]}
    result["rates"] = bench.device.rates(bench.like.dtype)
    result["host"] = bench.host()
    result |= bench.memory()
    store(result, arguments.out)
    if arguments.processes:
        result["compiled_before"] = compile_all(arguments, time.monotonic() + 0.4 * arguments.budget)
        print(f"compiled before: {result['compiled_before']}", flush=True)
    longest = 0.0
    for layer in chosen:
        start = time.monotonic()
        if start + longest > deadline:
            break
        try:
            rows = bench.measure(layer, result["rates"])
        except RuntimeError as failure:  # of the plain layer or of the reference
            rows = [refused_row(layer, name, failure) for name in MEASURES]
        result["layers"] += rows
        result["not_measured"].remove(layer.name)
        store(result, arguments.out)
        for row in rows:
            show(row)
        gc.collect()
        longest = max(longest, time.monotonic() - start)
    result["complete"] = not result["not_measured"]


def refused_row(layer: Layer, measure: str, failure: Exception) -> dict:
    """The row of a layer of which nothing could be timed."""
    reason = {"every contender": f"{type(failure).__name__}: {str(failure).strip()[:300]}"}
    names = {"layer": layer.name, "group": layer.group, "measure": measure}
    return names | {"seconds": {}, "ratios": {}, "floor": None, "choice": None, "refused": reason}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_layers")
    parser.add_argument("--layers", default="", metavar="REGEX", help="layers whose name matches (default all)")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each layer and measure (default 0.2)")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds in all (default 240)")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"a quarter of it for ViT-S (default {BATCH})")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to look at the benchmark itself"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that compile first (default one a core)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile(reference) out")
    parser.add_argument("--no-candidates", action="store_true", help="leave the Triton backend's candidates out")
    parser.add_argument("--warm-up", metavar="I/N", help="compile the I-th of N shares of the layers, time nothing")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"(default {RESULT.relative_to(ROOT)})")
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: torch.cuda.is_available() is False")
    if arguments.device == "cpu":
        arguments.processes = 0
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if ours was refused anywhere, 130 if it was interrupted."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    torch.backends.cudnn.benchmark = True
    bench = Bench(arguments)
    if arguments.warm_up:
        bench.warm_up()
        return 0
    settings = {
        "batch": arguments.batch,
        "dtype": arguments.dtype,
        "memory_format": "channels_last",
        "seconds": arguments.seconds,
        "budget": arguments.budget,
        "compiled": COMPILED,
    }
    command = "python -m benchmarks.gpu_layers " + shlex.join(arguments.argv)
    result = {"kind": "gpu"} | stored.header(command, bench.device.describe(), settings, ("triton", "bcos", "numpy"))
    try:
        benchmark(result, bench)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        store(result, arguments.out)
        print(f"stored in {arguments.out}\n\n{table(result)}", flush=True)
    return int(any("ours" in row["refused"] or "every contender" in row["refused"] for row in result["layers"]))


if __name__ == "__main__":
    sys.exit(main())
