"""The tests that run in a stand-in for a GPU: a report tells of each what its own process found, and what it wrote."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import recorder

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
WHERE = """
import os
DEVICE, EMULATED, STANDS_IN = "cpu", None, "PRETENDED" in os.environ
BACKENDS = ("pretended",) if STANDS_IN else ()
def load_emulated():
    assert STANDS_IN
"""
PRETENDED = """
def stand_ins():
    return [StandIn("pretence", {"PRETENDED": "1"}, lambda: {"PRETENDED": "1"})]
"""
TESTS = """
import os, sys, pytest

@pytest.fixture
def broken_at_first():
    print("written before the test")
    raise OSError("the fixture is broken")

@pytest.fixture
def broken_in_the_end():
    yield
    raise OSError("the clean-up is broken")

@pytest.mark.parametrize("i", range(3))
def test_passes(i, backend):
    print(f"pass {i} on {backend}")

def test_fails():
    print("written to stdout")
    print("written to stderr", file=sys.stderr)
    assert 1 == 2, "one is not two"

def test_is_skipped():
    pytest.skip("for this reason")

def test_is_known_to_fail():
    pytest.xfail("for that reason")

def test_has_no_fixture(broken_at_first):
    pass

def test_is_not_cleaned_up(broken_in_the_end):
    print("written by the test")

def test_ends_its_process():
    os._exit(3)

def test_is_run_after_it():
    pass
"""
OUTCOMES = {
    **{f"test_passes[pretended-{i}]": "passed" for i in range(3)},
    "test_fails[pretended]": "failed", "test_is_skipped[pretended]": "skipped",
    "test_is_known_to_fail[pretended]": "skipped", "test_has_no_fixture[pretended]": "failed",
    "test_is_not_cleaned_up[pretended]": "failed", "test_ends_its_process[pretended]": "failed",
    "test_is_run_after_it[pretended]": "passed",
}  # fmt: skip


@pytest.fixture
def started(tmp_path):
    """``started(*options)``: pytest's run of a folder with this project's stand-ins, on a stand-in that pretends."""
    folder = tmp_path / "tests" / "gpu_kernels"
    folder.mkdir(parents=True)
    shutil.copy(HERE / "gpu_kernels" / "conftest.py", folder)
    (folder / "stand_ins.py").write_text((HERE / "gpu_kernels" / "stand_ins.py").read_text() + PRETENDED)
    (folder / "where.py").write_text(WHERE)
    (folder / "test_child.py").write_text(TESTS)
    path = os.pathsep.join((str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")))
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", *options]
        return subprocess.run(
            [*command, str(folder)], cwd=HERE.parent, env=own | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip

    return run


def test_outcomes_and_outputs_are_those_of_the_process(started, tmp_path):
    record = tmp_path / "record"
    done = started("-p", "benchmarks.recorder", f"--record={record}")
    assert done.returncode == 1 and "4 failed, 4 passed, 2 skipped" in done.stdout, done.stdout
    told = {line["test"]: line for line in recorder.read(record) if "test" in line}
    prefix, suffix = "tests/gpu_kernels/test_child.py::", " (pretence)"
    assert {name.removeprefix(prefix).removesuffix(suffix): line["outcome"] for name, line in told.items()} == OUTCOMES

    def of(name: str) -> tuple[str, dict[str, str]]:
        line = told[f"{prefix}{name}[pretended]{suffix}"]
        return line["text"], {heading: text.strip() for heading, text in line["output"]}

    text, output = of("test_fails")
    assert "AssertionError: one is not two" in text
    assert output == {"Captured stdout call": "written to stdout", "Captured stderr call": "written to stderr"}
    assert "written to stdout" in done.stdout and "Captured stderr call" in done.stdout
    assert (
        of("test_is_skipped")[0] == "Skipped: for this reason" and "for that reason" in of("test_is_known_to_fail")[0]
    )
    text, output = of("test_has_no_fixture")
    assert "the fixture is broken" in text and output == {"Captured stdout setup": "written before the test"}
    text, output = of("test_is_not_cleaned_up")
    assert "the clean-up is broken" in text and output == {"Captured stdout call": "written by the test"}
    assert "its process ended with 3" in of("test_ends_its_process")[0]
    assert told[f"{prefix}test_passes[pretended-1]{suffix}"]["output"] == [
        ["Captured stdout call", "pass 1 on pretended\n"]
    ]


def test_tests_that_cannot_be_collected_are_an_error(started, tmp_path):
    """As a missing module is one: the folder's tests must not vanish."""
    (tmp_path / "tests" / "gpu_kernels" / "test_child.py").write_text("import a_module_that_is_not_there\n")
    done = started()
    assert done.returncode == 2 and "pretence: the tests could not be collected" in done.stdout, done.stdout
    assert "No module named 'a_module_that_is_not_there'" in done.stdout


def stand_ins_alone():
    """The module ``stand_ins`` without the folder's conftest."""
    spec = spec_from_file_location("stand_ins_alone", HERE / "gpu_kernels" / "stand_ins.py")
    spec.loader.exec_module(alone := module_from_spec(spec))
    return alone


def test_all_processes_of_a_run_collect_once(tmp_path, monkeypatch):
    """Whoever asks later, while another process collects or after it, waits for what that one finds."""
    alone = stand_ins_alone()
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    monkeypatch.setattr(alone, "FOLDER", tmp_path)
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", tmp_path.name)
    first, second = (alone.Collection("pretence", dict(os.environ)) for _ in range(2))
    found = second.tests()
    third = alone.Collection("pretence", dict(os.environ))
    assert [test.rpartition("::")[2] for test in found] == ["test_a", "test_b"]
    assert first.tests() == third.tests() == found
    assert first.process and not second.process and not third.process
    for each in (second, third, first):
        assert first.record.exists() and first.output.exists()
        each.stop()
    assert not first.record.exists() and not first.output.exists()


def test_a_record_is_read_once_for_all_tests_in_it(tmp_path, monkeypatch):
    """A reading takes longer the more tests have run: one for each of them would take most of a worker's time."""
    stand_in = object.__new__(stand_ins_alone().StandIn)
    stand_in.name, stand_in.told, record = "pretence", {}, tmp_path / "record"
    stand_in.shares = [SimpleNamespace(record=record, ended=False, crashed=[], step=lambda longest: write(4, 6))]

    def write(*numbers: int) -> None:
        with open(record, "a", encoding="utf-8") as file:
            for i in range(*numbers):
                file.write(json.dumps({"test": f"test_{i}", "outcome": "passed", "seconds": i}) + "\n")

    readings, usual = [], recorder.read
    monkeypatch.setattr(recorder, "read", lambda file: readings.append(file) or usual(file))
    write(4)
    assert [stand_in.outcome(f"test_{i}")["seconds"] for i in range(6)] == list(range(6))
    assert len(readings) == 3  # for the first, and before and after the wait for the fifth
