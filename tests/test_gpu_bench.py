"""The GPU's command, as far as it runs without one: candidates in the interpreter, the defaults, the shared tests."""

import argparse
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bcos_kernels.cli import main
from bcos_kernels.cli.bench import models, settings, stored, tasks
from bcos_kernels.cli.bench.devices import Cpu
from bcos_kernels.cli.bench.results import read
from benchmarks import gpu, shares

ON_CPU = ("--device", "cpu", "--seconds", "0", "--no-models", "--models", "vit_s", "--layers", "/8-384-1000")
THREE = ("--contenders", "plain", "reference", "ours")

TINY = """
import sys
import torch
from bcos_kernels.cli import main
from bcos_kernels.cli.bench import tasks
from bcos_kernels.cli.bench.devices import Cpu
from bcos_kernels.cli.bench.workloads import Layer
from bcos_kernels.transform import Spec
tasks.read = lambda *a, **k: [
    Layer("vit_s", (4, 8), Spec(), (5, 8), batch=4),
    Layer("vit_s", (2, 3, 3, 3), Spec((1, 1), (1, 1), (1, 1)), (4, 3, 3, 3), batch=2)]
torch.backends.cudnn.allow_tf32 = False  # the interpreter would round to tf32, which the reference on a CPU does not
Cpu.copied, Cpu.product, tasks.LEAST = 1 << 16, 64, 1
sys.exit(main(["bench", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_every_candidate_is_timed_in_the_interpreter(tmp_path):
    """Each in what it serves, checked before; what does not exist (semi, forward) is left out."""
    out = tmp_path / "tiny.json"
    options = ("--device=cpu", "--seconds=0", "--no-models", "--models=vit_s", f"--out={out}")
    options += ("--measures", "forward", "explanation")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TINY, *options, "--contenders", "plain", "reference", "ours", "ours/triton"]
    command += [f"ours/triton/{candidate}" for candidate in ("one-pass", "semi", "vendor")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=stored.ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read(out)
    assert result["complete"] and result["not_measured"] == []
    assert len(result["rows"]) == 4 and not any(row["refused"] for row in result["rows"])
    for row in result["rows"]:
        ways = {"one-pass", "vendor"} if row["measure"] == "forward" else {"one-pass", "semi", "vendor"}
        candidates = {f"ours/triton/{way}" for way in ways}
        assert set(row["contenders"]) == {"plain", "reference", "ours", "ours/triton"} | candidates
        assert row["floor"]["seconds"] > 0 and row["served"]["ours"] == {"cpu": 1}
        (way,) = row["served"]["ours/triton"]
        assert way.removeprefix("triton/") in ways
        assert all(row["served"][name] == {name.removeprefix("ours/"): 1} for name in candidates)


def test_a_wrong_layer_gets_no_figure(tmp_path, monkeypatch):
    build = tasks.build

    def sabotaged(*args):
        contenders = build(*args)
        with torch.no_grad():
            contenders["ours"].module.linear.weight[0] *= -1
        return contenders

    monkeypatch.setattr(tasks, "build", sabotaged)
    monkeypatch.setattr(Cpu, "copied", 1 << 16)
    monkeypatch.setattr(Cpu, "product", 64)
    out = tmp_path / "wrong.json"
    assert main(["bench", *ON_CPU, *THREE, f"--out={out}"]) == 1
    result = read(out)
    assert all("ours" in row["refused"] and "ours" not in row["contenders"] for row in result["rows"])
    text = gpu.report.table(result)
    assert "above" in text and "vit_s/8-384-1000" in text


@pytest.mark.slow
def test_a_gpus_defaults(monkeypatch):
    """bf16, batch 256 and 64, the sample of compiled layers, and every candidate of every backend of ours."""
    device = type("Device", (), {"name": "cuda"})()
    monkeypatch.setattr(settings, "opened", lambda name: device)
    parser = argparse.ArgumentParser()
    settings.configure(parser)
    parsed = parser.parse_args([])
    s = settings.Settings(parsed)
    assert (s.dtype, s.batch("layers", "resnet50"), s.batch("models", "vit_s")) == ("bf16", 256, 64)
    sampled = s.contenders_of("layers", "resnet50/56x56-64-k3s1-64", "training")
    assert {"compiled", "ours/triton/semi", "ours/cuda/vendor"} <= sampled
    assert "compiled" not in s.contenders_of("layers", "resnet50/56x56-64-k3s1-64", "explanation")
    assert "compiled" not in s.contenders_of("layers", "resnet50/28x28-128-k3s1-128", "training")
    whole = s.contenders_of("models", "resnet50", "training")
    assert "compiled" in whole and "ours/triton/semi" not in whole
    assert "compiled" not in s.contenders_of("models", "resnet50", "explanation loss")
    found = tasks.Bench(s).tasks()
    explained = len(models.EXPLAINED_MODELS) * len(models.EXPLAINED)
    assert found[0].name == "resnet50/224x224-6-k7s2-64" and len(found) == 137 + 78 + 7 * 5 + explained
    assert next(task.name for task in found if task.kind == "compiled model") == "resnet50, inference"


@pytest.mark.slow
def test_compiling_before_is_a_share_of_the_layers(monkeypatch):
    prepared = []
    monkeypatch.setattr(tasks.Bench, "_prepare", lambda self, layer: prepared.append(layer.name))
    for share in ("0/2", "1/2"):
        assert main(["bench", "--device", "cpu", "--models", "vit_s", "--warm-up", share]) == 0
    assert len(prepared) == len(set(prepared)) == 6
    monkeypatch.undo()
    assert main(["bench", *ON_CPU, *THREE, "--measures", "forward", "--warm-up", "0/1"]) == 0


SHARE = """
import pytest
def pytest_addoption(parser):
    parser.addoption("--share")
def pytest_collection_modifyitems(config, items):
    for item in items:
        item.add_marker(pytest.mark.gpu)
    i, n = map(int, config.getoption("--share").split("/"))
    items[:] = items[i::n]
"""
SHARED = """
import pytest
@pytest.mark.parametrize("i", range(4))
def test_quick(i):
    pass
def test_red():
    assert 1 == 2
def test_skipped():
    pytest.skip("no reason")
"""
STICKY = """
import sys, types, pytest
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.ModuleType("torch.cuda")
state = {}
def synchronize():
    if "lost" in state:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize
@pytest.mark.parametrize("i", range(8))
def test_calls(i):
    synchronize()
    if i == 3:
        state["lost"] = True  # a kernel that is still running: the test itself passes
"""
ALL_RED = """
import pytest
@pytest.mark.parametrize("i", range(200))
def test_red(i):
    print("9" * 8000)
    raise ValueError("8" * 8000 if i < 1 else "7" * 50)
"""
DYING = "import os\ndef test_a(): pass\ndef test_b(): os.kill(os.getpid(), 11)\ndef test_c(): pass\n"
HANGING = "import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\ndef test_c(): pass\n"


@pytest.fixture
def suite(tmp_path):
    """``suite(text)``: the arguments that run a folder of tests, shared as those of tests/gpu_kernels are."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "conftest.py").write_text(SHARE)

    def written(text: str) -> tuple[str, ...]:
        (folder / "test_shared.py").write_text(text)
        return "-m", "", f"--rootdir={folder}", str(folder)

    return written


def outcomes(found: dict) -> dict[str, str]:
    return {name.partition("::")[2]: test["outcome"] for name, test in found["tests"].items()}


def text_of(found: dict, name: str) -> str:
    return next(test["text"] for full, test in found["tests"].items() if full.endswith(name))


def test_shares_are_merged(suite):
    stored_as_they_came = []
    found = shares.run(120, 2, suite(SHARED), store=lambda now: stored_as_they_came.append(json.dumps(now)))
    assert not found["crashed"]
    assert outcomes(found) == {
        **{f"test_quick[{i}]": "passed" for i in range(4)}, "test_red": "failed", "test_skipped": "skipped"
    }  # fmt: skip
    text = shares.summary(found)
    assert "| **all** | 4 | 1 | 1 | 0 |" in text and "no reason" in text
    assert json.loads(stored_as_they_came[-1]) == found


@pytest.mark.slow
def test_a_lost_gpu_fails_the_test_that_lost_it_and_no_other(suite):
    """A sticky CUDA error: every later call of the process fails, so the share goes on in another process."""
    found = shares.run(120, 1, suite(STICKY))
    assert outcomes(found) == {f"test_calls[{i}]": "failed" if i == 3 else "passed" for i in range(8)}
    cause = text_of(found, "test_calls[3]")
    assert cause.startswith("after it the GPU was lost: CUDA error: an illegal memory access") and not found["crashed"]


@pytest.mark.slow
def test_a_test_that_ends_its_process_is_named_and_the_rest_is_run(suite):
    found = shares.run(120, 1, suite(DYING))
    assert outcomes(found) == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}
    assert "its process ended with -11" in text_of(found, "test_b")


@pytest.mark.slow
def test_a_test_that_hangs_is_named_and_the_rest_is_run(suite):
    found = shares.run(120, 1, suite(HANGING), longest=3)
    assert outcomes(found) == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}
    assert "ran for more than 3 s" in text_of(found, "test_b")


def test_a_share_that_no_test_ends_is_given_up(suite):
    found = shares.run(120, 1, suite("import os\nos._exit(9)\n"))
    assert found["tests"] == {} and "process 0 was given up" in found["crashed"][0]


def test_a_file_that_cannot_be_imported_fails_alone(suite):
    arguments = suite(SHARED)
    Path(arguments[-1], "test_broken.py").write_text("import no_such_package\n")
    found = shares.run(120, 1, arguments)
    told = outcomes(found)
    assert not found["crashed"] and [told.pop(name) for name in ("", "test_red")] == ["failed"] * 2
    assert "No module named 'no_such_package'" in text_of(found, "test_broken.py") and len(told) == 5


def test_where_every_test_fails_the_file_stays_small(suite, monkeypatch):
    """Its first failures are told in full and all others by their last lines, whatever they wrote."""
    found = shares.run(120, 1, suite(ALL_RED))
    texts = [test["text"] + "".join(written for _, written in test["output"]) for test in found["tests"].values()]
    assert len(texts) == 200 and all("ValueError" in text for text in texts) and len(texts[0]) > 9_000
    assert sum(map(len, texts)) < 500_000
    assert len(gpu.page_of(found)) < 30_000


def test_failures_of_one_error_are_told_as_one():
    """A page of thousands of tests is read from its end, in a minute: what went wrong there, and how often?"""

    def told(outcome: str, text: str = "") -> dict:
        return {"outcome": outcome, "seconds": 0.0, "text": text, "output": []}

    wrong = "    def check():\nE       AssertionError: y: error {} against float64\n\ncases.py:7: AssertionError"
    tests = {f"f.py::test[{i}]": told("failed", wrong.format(error)) for i, error in enumerate(("1e-3", "0.25", "7"))}
    tests["f.py::lost"] = told("failed", "after it the GPU was lost: illegal address\nand so on")
    tests |= {f"f.py::test[{i}]": told("not run") for i in range(10, 90)} | {"f.py::green": told("passed")}
    found = {"tests": tests, "crashed": []}
    assert shares.failures(found) == [
        ("AssertionError: y: error 1e-3 against float64", [f"f.py::test[{i}]" for i in range(3)]),
        ("after it the GPU was lost: illegal address", ["f.py::lost"]),
    ]
    page = gpu.page_of(found)
    assert "FAILED f.py::test[0] and 2 more\n    def check" in page and "FAILED f.py::lost\nafter it" in page
    assert page.count("not run: ") == 1 and page.endswith("not run: 80 tests, which the file of the tests names")


@pytest.mark.slow
def test_running_out_of_time_is_no_failure(suite, monkeypatch):
    """The time is over when the first test has passed, however long its process took to start."""
    passed = []

    def store(found: dict) -> None:
        passed.extend(name for name, outcome in outcomes(found).items() if outcome == "passed")

    clock = types.SimpleNamespace(sleep=time.sleep, monotonic=lambda: time.monotonic() + (120 if passed else 0))
    monkeypatch.setattr(shares, "time", clock)
    monkeypatch.setattr(shares, "STORE", 0.0)
    found = shares.run(120, 1, suite(HANGING), store=store)
    assert outcomes(found) == {"test_a": "passed", "test_b": "not run", "test_c": "not run"} and not found["crashed"]


# ------------------------------------------------------------------------------------------------ the command


REHEARSAL = """
import json, subprocess, sys, time, torch
from benchmarks import gpu, shares
torch.cuda.is_available = lambda: True
gpu.Gpu = lambda: type("Device", (), {"describe": lambda self: {"device": "a stand-in"}})()
gpu.SUITE, gpu.LATE = tuple(json.loads(sys.argv[1])), "no_such_test"
gpu.BENCH = ("--device=cpu", "--seconds=0", "--models", "vit_s", "--contenders", "plain", "reference", "ours")
gpu.QUICK_LAYERS = "/8-384-1000"
run = gpu.Job.run
def stand_in(job, command, seconds, **environment):
    said = {"tests/gpu/small_calls.py": "7 calls are right", "benchmarks.decisions": "training, fastest ÷ plain"}
    for part in command[1:3]:
        if part in said:
            command = [sys.executable, "-c", f"print({said[part]!r})"]
    return run(job, command, seconds, **environment)
gpu.Job.run = stand_in
sys.exit(gpu.main(sys.argv[2:]))
"""


def rehearse(suite: tuple[str, ...], *options: str) -> subprocess.Popen:
    """The whole command on a stand-in for a GPU, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(stored.ROOT), "OMP_NUM_THREADS": "1", "BCOS_KERNELS_COMMIT": "abc"}
    command = [sys.executable, "-c", REHEARSAL, json.dumps(suite), *options, "--processes=1"]
    return subprocess.Popen(
        command, cwd=stored.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_the_first_call_from_its_first_part_to_its_last(suite, tmp_path):
    process = rehearse(suite(SHARED)[2:], "right", "--no-build", f"--out={tmp_path}", "--seconds=400")
    printed, _ = process.communicate(timeout=500)
    page = (tmp_path / "gpu_right.txt").read_text()
    for part in (
        "extension: as it was found",
        "7 calls are right",
        "decisions: done\ntraining, fastest ÷",
        "| **all** | 4 | 1 | 1 | 0 |",
        "FAILED ",
        "ours ÷",
    ):
        assert part in page and part in printed
    assert process.returncode == 1 and "test_red: assert 1 == 2" in page.rpartition("what failed:")[2], page
    assert "no CUDA kernels" in page or torch.version.cuda
    assert read(tmp_path / "gpu_first.json")["rows"] and json.loads((tmp_path / "gpu_tests.json").read_text())["tests"]


@pytest.mark.slow
def test_a_call_that_is_killed_leaves_complete_files(suite, tmp_path):
    """In the middle of its tests, by a signal that nobody can answer."""
    process = rehearse(suite(HANGING)[2:], "right", "--no-build", f"--out={tmp_path}", "--seconds=400")
    tests, page, end = tmp_path / "gpu_tests.json", tmp_path / "gpu_right.txt", time.monotonic() + 200

    def told() -> bool:
        """Whether the first outcome is stored; the page is written after the file of the tests."""
        return tests.exists() and '"passed"' in tests.read_text() and "not run: " in page.read_text()

    while time.monotonic() < end and not told():
        time.sleep(0.2)
    process.kill()
    process.wait()
    found = json.loads(tests.read_text())
    assert outcomes(found) == {"test_a": "passed", "test_b": "not run", "test_c": "not run"} and not found["complete"]
    assert "not run: " in page.read_text()
