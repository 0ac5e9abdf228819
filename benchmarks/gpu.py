"""``python -m benchmarks.gpu``: what one GPU shows: the extension built, the tests, the layers' times, in one go."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from bcos_kernels.bench import report, stored
from bcos_kernels.bench.devices import Gpu
from bcos_kernels.bench.stored import ROOT

__all__ = ["main", "run_tests", "summary"]

RESULTS = ROOT / "benchmarks" / "results"
TESTS = ("-m", "gpu", "tests/gpu", "tests/gpu_kernels")
BUILD, TESTING, TIMING, CLOSING = 90.0, 240.0, 240.0, 10.0
"""The most seconds of each part."""
GRACE = 15.0  # seconds from an interrupt to the end of a process
FAILURES = 20  # printed; all are in the file


def build(seconds: float) -> str:
    """Compiles the extension in place, as an installation does; returns how it went."""
    start = time.monotonic()
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"built in {time.monotonic() - start:.0f} s" if done.returncode == 0 else f"not built: {last}"


def run_tests(seconds: float, processes: int, arguments: tuple[str, ...] = TESTS) -> dict:
    """The tests, a share for each process, so that they compile at once; whoever is not done in time is stopped.

    Returns ``tests``: name -> ``{"outcome": "passed" | "failed" | "skipped" | "not run", "seconds", "text"}``, and
    ``crashed``: what became of processes that ended otherwise than pytest does.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for i in range(processes):
            options = (f"--share={i}/{processes}", f"--record={folder}/{i}.json")
            plugins = ("-p", "no:cacheprovider", "-p", "benchmarks.recorder")
            command = [sys.executable, "-m", "pytest", "-q", *plugins, *arguments, *options]
            with open(f"{folder}/{i}.txt", "w") as log:
                running.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
        crashed = []
        try:
            for i, process in enumerate(running):
                stopped = wait(process, deadline)
                if not stopped and process.returncode not in (0, 1, 5):  # all passed, some failed, nothing to do
                    log = Path(folder, f"{i}.txt").read_text(encoding="utf-8", errors="replace")
                    crashed.append(f"process {i} ended with {process.returncode}: {log[-1500:].strip()}")
        finally:
            for process in running:
                process.kill()
        lines = [line for file in sorted(Path(folder).glob("*.json")) for line in read_lines(file)]
    return {"tests": merged(lines), "crashed": crashed}


def wait(process: subprocess.Popen, deadline: float) -> bool:
    """Waits for a process and stops it at the deadline; returns whether it had to be stopped."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(max(0.0, deadline + GRACE - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return True


def read_lines(file: Path) -> list[dict]:
    """The lines of a record; the last one may have been cut off."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def merged(lines: list[dict]) -> dict[str, dict]:
    """Test -> what came of it: the worst, where a test has several lines."""
    order = ("not run", "passed", "skipped", "failed")
    tests: dict[str, dict] = {}
    for line in lines:
        for name in line.get("collected", ()):
            tests.setdefault(name, {"outcome": "not run", "seconds": 0.0, "text": ""})
    for line in lines:
        if "test" in line:
            known = tests.setdefault(line["test"], {"outcome": "not run", "seconds": 0.0, "text": ""})
            if order.index(line["outcome"]) >= order.index(known["outcome"]):
                known.update(outcome=line["outcome"], text=line["text"], seconds=line["seconds"])
    return tests


def summary(found: dict) -> str:
    """How many tests of each file came out how, as a Markdown table, and the reasons of the skipped ones."""
    outcomes = ("passed", "failed", "skipped", "not run")
    rows: dict[str, dict[str, int]] = {}
    for name, test in found["tests"].items():
        row = rows.setdefault(name.partition("::")[0], dict.fromkeys(outcomes, 0))
        row[test["outcome"]] += 1
    lines = [f"| tests | {' | '.join(outcomes)} |", "|---|" + "---:|" * len(outcomes)]
    for file, row in sorted(rows.items()):
        lines.append(f"| {file} | {' | '.join(str(row[o]) for o in outcomes)} |")
    totals = [sum(row[o] for row in rows.values()) for o in outcomes]
    lines.append(f"| **all** | {' | '.join(map(str, totals))} |")
    reasons = sorted({test["text"] for test in found["tests"].values() if test["outcome"] == "skipped"})
    return "\n".join([*lines, "", *(f"- skipped: {reason}" for reason in reasons)])


def written(found: dict, result: dict) -> str:
    """Everything in words: the summary, the crashes, each failure with its text, and what was not run."""
    parts = [f"{result['machine']['device']}, {result['versions']}, commit {result['commit']}", summary(found)]
    parts += found["crashed"]
    tests = found["tests"].items()
    parts += [f"FAILED {name}\n{test['text']}" for name, test in tests if test["outcome"] == "failed"]
    parts += ["\n".join(f"not run: {name}" for name, test in tests if test["outcome"] == "not run")]
    return "\n\n".join(parts) + "\n"


def benchmark(out: Path, seconds: float, end: float, processes: int) -> bool:
    """The harness of the package with a limit of time, stopped at the ``end``; returns whether it failed."""
    out.unlink(missing_ok=True)  # else an unfinished run would stand beside an earlier one
    options = [f"--limit={seconds / 60:.2f}", f"--processes={processes}", f"--out={out}", "--device=cuda"]
    timing = subprocess.Popen([sys.executable, "-m", "bcos_kernels", "bench", *options], cwd=ROOT)
    return wait(timing, end) or timing.returncode != 0


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--seconds", type=float, default=525.0, help="for all of it (default 525)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once (default one a core)")
    parser.add_argument("--no-tests", action="store_true", help="the benchmarks alone")
    parser.add_argument("--no-bench", action="store_true", help="the tests alone")
    out = Path(os.environ.get("OUT") or RESULTS)
    parser.add_argument("--out", type=Path, default=out, help="folder of the results (default $OUT or %(default)s)")
    arguments = parser.parse_args(argv, argparse.Namespace(argv=argv))
    if not torch.cuda.is_available():
        parser.error(
            f"no GPU here: torch {torch.__version__} of {sys.executable} sees none; BCOS_PYTHON=/path/to/python "
            "makes make use another interpreter"
        )
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Returns 0 if every test that ran passed and every layer could be timed, else 1."""
    end = time.monotonic()
    arguments = parse(sys.argv[1:] if argv is None else argv)
    end += arguments.seconds - CLOSING

    def left(most: float) -> float:
        return max(0.0, min(most, end - time.monotonic()))

    print(f"extension: {build(left(BUILD))}", flush=True)
    command = "python -m benchmarks.gpu " + shlex.join(arguments.argv)
    result = stored.header(command, Gpu().describe(), {"processes": arguments.processes}, ("triton", "bcos", "pytest"))
    failed, texts = False, []
    if not arguments.no_tests:
        start = time.monotonic()
        share = 1.0 if arguments.no_bench else 0.55  # the rest of the time is for the benchmarks
        found = run_tests(min(TESTING, share * left(arguments.seconds)), arguments.processes)
        result |= found | {"seconds": time.monotonic() - start}
        result["complete"] = all(test["outcome"] != "not run" for test in found["tests"].values())
        stored.store(result, arguments.out / "gpu_tests.json")
        (arguments.out / "gpu_tests.txt").write_text(written(found, result), encoding="utf-8")
        red = [name for name, test in found["tests"].items() if test["outcome"] == "failed"]
        failed = bool(red or found["crashed"] or not found["tests"])
        texts = [*(f"FAILED {name}" for name in red[:FAILURES]), *found["crashed"][:3], summary(found)]
        print(f"tests: {result['seconds']:.0f} s; {arguments.out / 'gpu_tests.txt'}", flush=True)
    if not arguments.no_bench:
        out = arguments.out / "gpu_bench.json"
        failed |= benchmark(out, min(TIMING, left(TIMING)), end, arguments.processes)
        if out.exists():
            texts.append(report.table(json.loads(out.read_text(encoding="utf-8")), layers=False))
    print("\n\n".join(["", *texts]), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
