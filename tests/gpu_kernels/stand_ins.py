"""The tests of this folder without a GPU: each is a test of the main run, once for every stand-in (``where.py``).

Triton decides when it is imported whether it interprets, and a fault of an emulated kernel ends its process. So another
process collects the tests, and two run those that were chosen, as ``make gpu`` does it on a GPU: a test whose process
dies or hangs has failed, and the others are run in a new process. Where pytest itself runs in several processes, all
tests of one stand-in belong to one of these, which starts one process for them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated import GXX, HEADERS, cudnn, module

from benchmarks import recorder, shares

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PROCESSES = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
LONGEST = 150.0
"""Seconds after which a test is held to hang."""


class StandIn:
    """What takes the GPU's place for the kernels of one backend: its tests, and the processes that run them."""

    def __init__(self, name: str, collecting: dict[str, str], running: Callable[[], dict[str, str]]) -> None:
        self.name, self.running = name, running
        self.folder = tempfile.TemporaryDirectory()
        self.shares: list[shares.Share] = []
        self.told: dict[str, dict] = {}
        """Test -> its outcome, of those that had run when the records were read."""
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        path = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
        self.environment["PYTHONPATH"] = os.pathsep.join(path)
        self.record = Path(self.folder.name, "collected")
        options = ("-q", "--collect-only", "-p", "no:cacheprovider", "-p", "benchmarks.recorder")
        command = [sys.executable, "-m", "pytest", *options, f"--record={self.record}", str(FOLDER)]
        self.collection = subprocess.Popen(
            command, cwd=ROOT, env=self.environment | collecting, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def collected(self, path: Path) -> list[str]:
        """The names of the tests of one file."""
        output, _ = self.collection.communicate() if self.collection.returncode is None else ("", None)
        if self.collection.returncode != 0:
            raise pytest.Collector.CollectError(f"{self.name}: the tests could not be collected\n{output}")
        (line,) = (line for line in recorder.read(self.record) if "collected" in line)
        file = f"{path.relative_to(ROOT).as_posix()}::"
        return [test.removeprefix(file) for test in line["collected"] if test.startswith(file)]

    def start(self, tests: list[str]) -> None:
        """Starts the processes; each has a share of ``tests``, the names of tests with their files."""
        chosen = Path(self.folder.name, "chosen")
        chosen.write_text("\n".join(f"{ROOT}/{test}" for test in tests), encoding="utf-8")
        environment = self.environment | self.running()
        for i in range(PROCESSES):
            arguments = (f"--rootdir={ROOT}", f"@{chosen}")
            self.shares.append(shares.Share(i, PROCESSES, Path(self.folder.name), arguments, environment))

    def outcome(self, test: str) -> dict:
        """Waits until a test has run: ``{"outcome", "seconds", "text", "output"}``."""
        while True:
            ended = all(share.ended for share in self.shares)
            if test not in self.told:
                found = shares.merged([line for share in self.shares for line in recorder.read(share.record)])
                self.told = {name: told for name, told in found.items() if told["outcome"] != "not run"}
            if test in self.told:
                return self.told[test]
            if ended:
                crashes = "\n".join(text for share in self.shares for text in share.crashed)
                text = f"{self.name}: the test was not run. {crashes}"
                return {"outcome": "failed", "seconds": 0.0, "text": text, "output": []}
            for share in self.shares:
                if not share.ended:
                    share.step(LONGEST)
            time.sleep(shares.POLL)

    def stop(self) -> None:
        for process in (self.collection, *(share.process for share in self.shares)):
            process.kill()
            process.wait()
        self.folder.cleanup()


def stand_ins() -> list[StandIn]:
    """Those that this machine has; all of them are collecting their tests when this returns."""
    found = [StandIn("triton interpreter", {"TRITON_INTERPRET": "1"}, lambda: {"TRITON_INTERPRET": "1"})]
    if GXX and HEADERS:
        # the kernels are compiled when the first test needs them: to collect the tests takes none
        running = lambda: {"BCOS_TEST_EMULATED": str(module()), "BCOS_TEST_CUDNN": str(cudnn())}  # noqa: E731
        found.append(StandIn("cuda emulation", {"BCOS_TEST_EMULATED": "not yet compiled"}, running))
    return found


class StandInFile(pytest.File):
    """The tests of one file in one stand-in."""

    stand_in: StandIn

    def collect(self):
        for test in self.stand_in.collected(self.path):
            yield StandInTest.from_parent(self, name=f"{test} ({self.stand_in.name})", test=test)


class StandInTest(pytest.Item):
    """One test, run in another process."""

    told: dict | None = None
    """What its process recorded, once it has run."""

    def __init__(self, *, test: str, **arguments) -> None:
        super().__init__(**arguments)
        self.stand_in: StandIn = self.parent.stand_in
        self.test = f"{self.path.relative_to(ROOT).as_posix()}::{test}"
        self.add_marker(pytest.mark.slow)

    def runtest(self) -> None:
        if not self.stand_in.shares:
            chosen = (item for item in self.session.items if isinstance(item, StandInTest))
            self.stand_in.start([item.test for item in chosen if item.stand_in is self.stand_in])
        self.told = told = self.stand_in.outcome(self.test)
        if told["outcome"] == "skipped":
            pytest.skip(told["text"].removeprefix("Skipped: "))
        if told["outcome"] == "failed":
            pytest.fail(told["text"], pytrace=False)

    def reportinfo(self):
        return self.path, None, self.name
