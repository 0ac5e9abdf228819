"""A plugin of pytest (``-p benchmarks.recorder --record=FILE``) for runs that may be stopped at any moment."""

from __future__ import annotations

import json

__all__ = ["Recorder", "pytest_addoption", "pytest_configure"]


def pytest_addoption(parser) -> None:
    parser.addoption("--record", help="file to which the tests and their outcomes are written, a line of JSON for each")


def pytest_configure(config) -> None:
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(config.getoption("--record")))


class Recorder:
    """What was collected and what came of it, complete up to the moment a run is stopped."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, **line) -> None:
        self.file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session) -> None:
        self.write(collected=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", seconds=0.0, text=report.longreprtext[-5000:])

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or not report.passed:
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.write(test=report.nodeid, outcome=report.outcome, seconds=report.duration, text=text[-5000:])
