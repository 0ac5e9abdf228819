"""The tests of this folder without a GPU: each is a test of the main run, once for every stand-in (``where.py``).

Triton decides when it is imported whether it interprets, and a fault of an emulated kernel ends its process. So another
process collects the tests, and two run those that were chosen, as ``make gpu`` does it on a GPU: a test whose process
dies or hangs has failed, and the others are run in a new process. Where pytest itself runs in several processes, the
first of them has the tests collected for all, and all tests of one stand-in belong to one of these, which starts one
process for them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
import uuid
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
POLL = 1.0
"""Seconds between two readings of the records: the longer, the less of a core is read away from the tests."""


class Collection:
    """The process that collects a stand-in's tests: one for all processes of a run of pytest."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
        place = Path(tempfile.gettempdir(), f"bcos_kernels-{run}-{name.replace(' ', '-')}")
        self.name, self.record, self.output = name, place.with_suffix(".json"), place.with_suffix(".txt")
        self.process: subprocess.Popen | None = None
        """Where this one is the first that asks for the tests."""
        with open(self.output, "a", encoding="utf-8") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process that inherits it has ended
            except BlockingIOError:
                return
            if not self.record.exists():
                options = ("-q", "--collect-only", "-p", "no:cacheprovider", "-p", "benchmarks.recorder")
                command = [sys.executable, "-m", "pytest", *options, f"--record={self.record}", str(FOLDER)]
                self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def tests(self) -> list[str]:
        """Waits for the names of all tests, with their files."""
        with open(self.output, encoding="utf-8") as output:
            fcntl.flock(output, fcntl.LOCK_SH)
            lines = recorder.read(self.record)
            found = [line["collected"] for line in lines if "collected" in line]
            if len(found) != 1 or any("outcome" in line for line in lines):
                raise pytest.Collector.CollectError(f"{self.name}: the tests could not be collected\n{output.read()}")
        return found[0]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.record.unlink(missing_ok=True)
            self.output.unlink(missing_ok=True)


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
        self.collection = Collection(name, self.environment | collecting)

    def collected(self, path: Path) -> list[str]:
        """The names of the tests of one file."""
        file = f"{path.relative_to(ROOT).as_posix()}::"
        return [test.removeprefix(file) for test in self.collection.tests() if test.startswith(file)]

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
            time.sleep(POLL)

    def stop(self) -> None:
        self.collection.stop()
        for share in self.shares:
            share.process.kill()
            share.process.wait()
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
