"""pytest in several processes at once, each with a share of the tests; none of them can spoil the others' results.

A share whose process dies, hangs or loses the GPU continues in a new process after the test that caused it. Outcomes
are stored as they come: at any moment the file is complete and readable.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bcos_kernels.cli.bench.stored import ROOT
from bcos_kernels.cli.bench.tables import Table

from . import recorder

__all__ = ["Share", "failures", "merged", "run", "stopped", "summary"]

GRACE = 15.0  # seconds from an interrupt to the end of a process
LONGEST = 150.0
"""Seconds after which a test counts as hanging."""
RESTARTS = 12  # of a share; a GPU that is lost more often has shown enough
POLL, STORE = 0.3, 2.0
ENDED = (0, 1, 5)  # pytest: all passed, some failed, nothing to do
OUTCOMES = ("passed", "failed", "skipped", "not run")
ERROR = 300  # characters of an error


class Share:
    """The share ``i`` of ``n``: its process, its record and the number of its restarts."""

    def __init__(self, i: int, n: int, folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.record, self.log = folder / f"{i}.json", folder / f"{i}.txt"
        options = (f"--share={i}/{n}", f"--record={self.record}")
        plugins = ("-p", "no:cacheprovider", "-p", "benchmarks.recorder")
        alone = "--continue-on-collection-errors"  # a file that cannot be imported fails alone
        self.command = [sys.executable, "-m", "pytest", "-q", alone, *plugins, *arguments, *options]
        self.environment, self.name = environment, f"process {i}"
        self.restarts, self.ended, self.crashed = 0, False, []
        self.start()

    def start(self) -> None:
        self.since = time.monotonic()
        self.running: str | None = None
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def step(self, longest: float) -> None:
        """Checks the process, and starts a new one where a test has ended or blocked it."""
        code = self.process.poll()
        lines = recorder.read(self.record)
        started = next((line["started"] for line in reversed(lines) if "started" in line), None)
        done = {line["test"] for line in lines if "test" in line}
        current = started if started not in done else None
        if current != self.running:
            self.running, self.since = current, time.monotonic()
        if code is None and (self.running is None or time.monotonic() - self.since < longest):
            return
        if code is None:
            self.process.kill()
            self.process.wait()
            self.blame(current, f"it ran for more than {longest:.0f} s and was killed")
        elif lines and "lost" in lines[-1]:
            cause = lines[-1]
            own = next((line["text"] for line in reversed(lines) if line.get("test") == cause["lost"]), "")
            self.blame(cause["lost"], f"after it the GPU was lost: {cause['text']}\n{own}")
        elif code in ENDED:
            self.ended = True
        else:
            told = self.log.read_text(encoding="utf-8", errors="replace")[-1500:].strip()
            self.blame(current, f"its process ended with {code}: {told}")

    def blame(self, test: str | None, reason: str) -> None:
        """Records that the test failed for this reason and continues after it; without a test the share ends."""
        if test is None or self.restarts == RESTARTS:
            self.ended = True
            self.crashed.append(f"{self.name} was given up ({self.restarts} restarts): {reason}")
        if test is not None:
            line = {"test": test, "outcome": "failed", "seconds": time.monotonic() - self.since, "text": reason}
            with open(self.record, "a", encoding="utf-8") as record:
                record.write("\n" + json.dumps(line) + "\n")  # the line before may have been cut off
        if not self.ended:
            self.restarts += 1
            self.start()

    def stop(self, deadline: float) -> None:
        self.ended = True
        stopped(self.process, deadline)


def stopped(process: subprocess.Popen, deadline: float, grace: float = GRACE) -> bool:
    """Waits for a process and stops it at the deadline; returns whether it had to be stopped."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(max(0.0, deadline + grace - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return True


def run(
    seconds: float,
    processes: int,
    arguments: tuple[str, ...],
    environment: dict[str, str] | None = None,
    store: Callable[[dict], None] = lambda found: None,
    longest: float = LONGEST,
) -> dict:
    """Runs the tests, a share in each process. Processes that are not done in time are stopped, which is no failure.

    Returns, and hands to ``store`` every few seconds, ``tests``: name -> ``{"outcome": "passed" | "failed" | "skipped"
    | "not run", "seconds", "text", "output"}``, and ``crashed``: processes that were given up, and why.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder, shares, last = Path(name), [], 0.0

        def found() -> dict:
            lines = [line for share in shares for line in recorder.read(share.record)]
            return {"tests": merged(lines), "crashed": [text for share in shares for text in share.crashed]}

        try:
            for i in range(processes):
                shares.append(Share(i, processes, folder, arguments, environment))
            while time.monotonic() < deadline and not all(share.ended for share in shares):
                for share in (share for share in shares if not share.ended):
                    share.step(longest)
                if time.monotonic() - last > STORE:
                    store(found())
                    last = time.monotonic()
                time.sleep(POLL)
            for share in (share for share in shares if not share.ended):
                share.process.send_signal(signal.SIGINT)
            for share in (share for share in shares if not share.ended):
                share.stop(deadline)
        finally:
            for share in shares:
                share.process.kill()
                share.process.wait()
        store(result := found())
        return result


def merged(lines: list[dict]) -> dict[str, dict]:
    """Test -> its outcome, the worst one where it has several lines."""
    order = ("not run", "passed", "skipped", "failed")
    blank = {"outcome": "not run", "seconds": 0.0, "text": "", "output": []}
    tests: dict[str, dict] = {}
    for line in lines:
        for name in line.get("collected", ()):
            tests.setdefault(name, dict(blank))
    for line in lines:
        if "test" in line:
            known = tests.setdefault(line["test"], dict(blank))
            if order.index(line["outcome"]) >= order.index(known["outcome"]):
                known.update({key: line.get(key, value) for key, value in blank.items()})
    return tests


def summary(found: dict) -> str:
    """The number of tests of each file by outcome, as a Markdown table, and the reasons of the skipped ones."""
    rows: dict[str, dict[str, int]] = {}
    for name, test in found["tests"].items():
        row = rows.setdefault(name.partition("::")[0], dict.fromkeys(OUTCOMES, 0))
        row[test["outcome"]] += 1
    lines = [(file, *(str(row[o]) for o in OUTCOMES)) for file, row in sorted(rows.items())]
    lines.append(("**all**", *(str(sum(row[o] for row in rows.values())) for o in OUTCOMES)))
    reasons = sorted({test["text"] for test in found["tests"].values() if test["outcome"] == "skipped"})
    table = Table(("tests", *OUTCOMES), lines, frozenset(range(1, 1 + len(OUTCOMES)))).markdown()
    return "\n".join([table, "", *(f"- skipped: {reason}" for reason in reasons)])


def failures(found: dict) -> list[tuple[str, list[str]]]:
    """Each error with the tests that it failed, the most frequent first; errors differ in more than their numbers."""
    alike: dict[str, tuple[str, list[str]]] = {}
    for name, test in found["tests"].items():
        if test["outcome"] == "failed":
            error = _error(test["text"])
            alike.setdefault(re.sub(r"\d[\d.]*(e[+-]?\d+)?", "0", error), (error, []))[1].append(name)
    return sorted(alike.values(), key=lambda kind: -len(kind[1]))


def _error(text: str) -> str:
    """The line of a failure that says what went wrong: pytest's first one of an error, or else the first of all."""
    lines = text.strip().splitlines() or [""]
    told = (line[1:].strip() for line in lines if re.match(r"E\s", line))
    return next(told, lines[0])[:ERROR]
