"""A run from its first row to its last: its time limit, the file that grows with each row, and interruptions."""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from ...text import progress, wrapped
from ..measure import flushing_subnormals, keep_pages_warm, release_pages
from ..terminal import refused
from . import host, show, stored
from .contenders import in_a_line
from .devices import DeviceLost
from .noise import Watch
from .results import EVERY, SCHEMA
from .settings import Settings
from .tables import no_verdict
from .tasks import Bench, Task, task_of

__all__ = ["main"]

PACKAGES = ("triton", "bcos", "torchvision", "numpy")
COMPILING_SHARE = 0.4  # of the time limit, at most, for compiling before anything is timed
BEFORE = 0.3  # seconds in which what else the machine does is looked at before a run
COMPILER_BYTES = 8 << 30  # of GPU memory for each process that compiles


def main(options: argparse.Namespace) -> int:
    """Measures and stores.

    Returns 0; 1 if ours was refused somewhere; 2 for bad input or a lost device; 130 if it was interrupted.
    """
    try:
        settings = Settings(options)
        bench = Bench(settings)
        if options.warm_up:
            return _prepare(bench.tasks(), options.warm_up)
        if options.list:
            print("\n".join(show.listing(bench)))
            return 0
        run = Run(settings, bench, bench.tasks(), options)
        if options.where:
            print(run.path)
            return 0
        run.store()
    except (ImportError, OSError, TypeError, ValueError) as error:
        return refused("bench", error)
    with flushing_subnormals():
        return run.main()


def _prepare(tasks: list[Task], share: str) -> int:
    """Fills the compilers' caches on disk for a share ``I/N`` of the tasks; times nothing."""
    here, of = map(int, share.split("/"))
    for prepare in [task.prepare for task in tasks if task.prepare][here::of]:
        with suppress(RuntimeError):  # the measurement raises it again and reports it
            prepare()
        gc.collect()
    return 0


class Run:
    """One run: its tasks, its deadline and its growing result."""

    def __init__(self, settings: Settings, bench: Bench, tasks: list[Task], options: argparse.Namespace) -> None:
        self.settings, self.bench, self.tasks, self.argv = settings, bench, tasks, options.argv
        self.start = time.monotonic()
        machine = settings.device.describe()
        described = settings.described() | {"pages_warm": keep_pages_warm()}
        command = stored.typed("python -m bcos_kernels", self.argv, settings.out, options.resume)
        self.result = {"schema": SCHEMA} | stored.header(command, machine, described, PACKAGES)
        self.result |= {"not_measured": [task.name for task in tasks], "rates": {}, "rows": []}
        self.path = settings.out or stored.default_path(machine["device"], selection(options))
        self.kept = stored.is_complete(self.path)
        if options.resume:
            self.resume(options.resume, stored.unfinished(options.resume, machine, described))

    def resume(self, path: Path, earlier: dict) -> None:
        """Continues an unfinished run: with its header, rates and rows, and the tasks that it left out."""
        left = [task for task in self.tasks if task.name in earlier["not_measured"]]
        own = {"command": self.result["command"], "started": self.result["started"], "commit": self.result["commit"]}
        rows = [row for row in earlier["rows"] if task_of(row) not in earlier["not_measured"]]
        resumed = [*earlier.get("resumed", ()), own]
        self.result = earlier | {"rows": rows, "not_measured": [task.name for task in left], "resumed": resumed}
        self.path, self.kept, self.tasks = path, False, left

    def main(self) -> int:
        """Measures everything within the time limit; returns the exit status."""
        status = 0
        try:
            self.measure()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 130
        except DeviceLost as error:
            print(f"bcos_kernels bench: the device is lost, earlier rows are kept: {error}", file=sys.stderr)
            status = 2
        self.result["complete"] = not self.result["not_measured"]
        self.result["not_measured"] += self.bench.ended
        print(f"stored in {(path := self.finish())}", flush=True)
        if self.result["rows"]:
            print(f"its tables: python -m bcos_kernels bench report {shlex.quote(str(path))}", flush=True)
        if sentence := no_verdict(self.result):
            print(wrapped(sentence), flush=True)
        refused = (row["refused"].keys() & {"ours", EVERY} for row in self.result["rows"])
        return status or int(any(refused))

    def measure(self) -> None:
        s, result = self.settings, self.result
        before = Watch()
        time.sleep(BEFORE)
        result["load"] = {"before": before.others(), "during": None}
        self.watch = Watch()
        self.bench.rates = result["rates"] = result["rates"] or s.device.rates(s.like.dtype)
        if s.on_gpu and s.module is None:
            result["host"] = host.rows(s.device.name, s.seconds)
        if s.processes and any(task.prepare for task in self.tasks):
            result["compiled_before"] = self.compile_before()
            print(f"compiled before: {result['compiled_before']}", flush=True)
        print(show.HEAD, flush=True)
        longest: dict[str, float] = {}
        with progress("bench", sum(task.weight for task in self.tasks)) as advance:
            for task in self.tasks:
                start = time.monotonic()
                if s.limit is None or start + longest.get(task.kind, 0.0) < self.start + s.limit:
                    self.run(task)
                    longest[task.kind] = max(longest.get(task.kind, 0.0), time.monotonic() - start)
                advance(task.name, task.weight)

    def run(self, task: Task) -> None:
        """Measures and stores the rows of a task one by one."""
        try:
            for row in task.rows():
                self.result["rows"].append(row)
                self.result["load"]["during"] = self.watch.others()
                self.store()
                print(show.line(row), flush=True)
        except DeviceLost:
            raise
        except RuntimeError as failure:  # raised before there were contenders
            if not self.settings.device.is_alive():
                raise DeviceLost(in_a_line(failure)) from failure
            self.bench.ended.append(f"{task.name}: {in_a_line(failure)}")
        self.result["not_measured"].remove(task.name)
        self.store()
        gc.collect()
        release_pages()

    def store(self) -> None:
        stored.store(self.result, stored.partial_path(self.path) if self.kept else self.path)

    def finish(self) -> Path:
        """Stores the result for good, where only a complete one replaces an earlier one; returns the file."""
        if self.kept and self.result["complete"]:
            stored.partial_path(self.path).unlink(missing_ok=True)
            self.kept = False
        self.store()
        return stored.partial_path(self.path) if self.kept else self.path

    def compile_before(self) -> str:
        """Fills the compilers' caches in several processes, with a share of the layers each; returns how it went."""
        room = torch.cuda.mem_get_info()[0] // COMPILER_BYTES
        processes = max(1, min(self.settings.processes, room, sum(task.prepare is not None for task in self.tasks)))
        start = time.monotonic()
        deadline = start + COMPILING_SHARE * self.settings.limit if self.settings.limit else float("inf")
        command = [sys.executable, "-m", "bcos_kernels", *self.argv, "--warm-up"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        running = [
            subprocess.Popen([*command, f"{i}/{processes}"], env=environment, stdout=subprocess.DEVNULL)
            for i in range(processes)
        ]
        stopped = 0
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    left = max(0.0, deadline - time.monotonic())
                    process.wait(None if left == float("inf") else left)
                stopped += process.returncode is None
        finally:
            for process in running:
                process.kill()
                process.wait()
        failed = sum(process.returncode != 0 for process in running) - stopped
        taken = time.monotonic() - start
        return f"{processes} processes, {taken:.0f} s, {stopped} stopped by the clock, {failed} failed"


def selection(options: argparse.Namespace) -> str:
    """What a run that is not a complete one under the usual conditions adds to the name of its file."""
    if options.module:
        return options.module.replace(":", "-").replace(".", "-")
    if options.quick:
        return "quick"
    narrower = options.models, options.layers, options.measures, options.contenders, options.no_models
    others = options.no_layers, options.batch, options.dtype, options.seconds
    complete = options.scaling and all(value in (None, False) for value in (*narrower, *others))
    return "" if complete else "selection"
