"""A plugin of pytest (``-p benchmarks.recorder --record=FILE``) for runs that may end at any moment.

A line of JSON for each event: ``{"collected": [...]}``, ``{"started": test}``, ``{"test", "outcome", "seconds",
"text", "output"}``, where the output is a list of headings with what the test wrote. A run that finds outcomes in FILE
continues after them. After each test it asks whether the GPU still responds: an illegal access makes every later call
of the process fail, so that the test that caused it is recorded, as ``{"lost": test}`` and as failed, and the run ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

__all__ = ["Recorder", "pytest_addoption", "pytest_configure", "read"]

TEXT = 5000  # characters kept of a failure, and of each part of its output
ROOM = 400_000
"""Characters that the failures of a process may take, after which only the end of each is kept: where every test fails,
the file stays small enough to be carried away and read again and again."""
BRIEF = 200


def pytest_addoption(parser) -> None:
    parser.addoption("--record", help="file to which the tests and their outcomes are written, a line of JSON for each")


def pytest_configure(config) -> None:
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--record"))))


def read(file: Path) -> list[dict]:
    """The lines of a record, which are none without a file; the last line may be cut off and is then left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def lost() -> str | None:
    """The error of a GPU that no longer responds; None where it does, or where none is in use."""
    torch = sys.modules.get("torch")  # not imported here: tests without torch start in a fraction of the time
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    return None


class Recorder:
    """Writes the collected tests and their outcomes, so that the record is complete whenever a run is stopped."""

    def __init__(self, path: Path) -> None:
        lines = read(path)
        self.done = {line["test"] for line in lines if "test" in line}
        self.parent = os.getppid()
        self.told: dict = {}
        self.room = ROOM
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, **line) -> None:
        self.file.write(json.dumps(line) + "\n")

    def kept(self, text: str) -> str:
        """The end of a text, which is short where those before have taken the room."""
        text = text[-(TEXT if self.room > 0 else BRIEF) :]
        self.room -= len(text)
        return text

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items) -> None:
        self.write(collected=[item.nodeid for item in items])
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", seconds=0.0, text=self.kept(report.longreprtext))

    def pytest_runtest_logstart(self, nodeid) -> None:
        self.write(started=nodeid)
        self.told = {}

    def pytest_runtest_logreport(self, report) -> None:
        if (report.when == "call" or not report.passed) and self.told.get("outcome") != "failed":
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            output = [(heading, self.kept(written)) for heading, written in report.sections]
            seconds = max(report.duration, self.told.get("seconds", 0.0))
            self.told = {"outcome": report.outcome, "seconds": seconds, "text": self.kept(text), "output": output}

    def pytest_runtest_logfinish(self, nodeid) -> None:
        """Only now is the outcome known: what a fixture does after the test may still fail."""
        self.write(test=nodeid, **self.told)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        result = yield
        reason = lost()
        if reason is not None:
            self.write(lost=item.nodeid, text=reason)
            item.session.shouldstop = f"the GPU is lost: {reason}"
        elif os.getppid() != self.parent:
            item.session.shouldstop = "the process that started this run has ended"
        return result
