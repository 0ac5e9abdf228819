"""The GPU's command, as far as it runs without one: candidates in the interpreter, the defaults, the shared tests."""

import os
import subprocess
import sys
import time

import pytest
import torch

from bcos_kernels.bench import run, settings, stored, tasks
from bcos_kernels.bench.results import read
from benchmarks import gpu

ON_CPU = ("--device", "cpu", "--seconds", "0", "--no-models", "--models", "vit_s", "--layers", "/8-384-1000")
TINY = """
import sys
from bcos_kernels.bench import run, tasks, workloads
from bcos_kernels.bench.devices import Cpu
L = workloads.Layer
tasks.read = lambda *a, **k: [
    L("vit_s", "linear", (4, 8), 5, batch=4), L("vit_s", "conv2d", (2, 3, 3, 3), 4, (3, 3), (1, 1), (1, 1), batch=2)]
Cpu.copied, Cpu.product = 1 << 16, 64
sys.exit(run.main(sys.argv[1:]))
"""


def test_every_candidate_is_timed_in_the_interpreter(tmp_path):
    """Each in what it serves, checked before; what does not exist (semi, forward) is left out."""
    out = tmp_path / "tiny.json"
    options = ("--device=cpu", "--seconds=0", "--no-models", "--models=vit_s", f"--out={out}")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TINY, *options, "--contenders", "plain", "reference", "ours", "ours/triton"]
    command += [f"ours/triton/{candidate}" for candidate in ("one-pass", "semi", "vendor")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=stored.ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    result = read(out)
    assert result["complete"] and result["not_measured"] == []
    assert len(result["rows"]) == 6 and not any(row["refused"] for row in result["rows"])
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
    out = tmp_path / "wrong.json"
    assert run.main([*ON_CPU, f"--out={out}"]) == 1
    result = read(out)
    assert all("ours" in row["refused"] and "ours" not in row["contenders"] for row in result["rows"])
    text = gpu.report.table(result)
    assert "above" in text and "vit_s/8-384-1000" in text


def test_a_gpus_defaults(monkeypatch):
    """bf16, batch 256 and 64, the sample of compiled layers, and every candidate of every backend of ours."""
    device = type("Device", (), {"name": "cuda"})()
    monkeypatch.setattr(settings, "opened", lambda name: device)
    s = settings.resolved(settings.parse([]))
    assert (s.dtype, s.batch("layers", "resnet50"), s.batch("models", "vit_s")) == ("bf16", 256, 64)
    sampled = s.contenders_of("layers", "resnet50/56x56-64-k3s1-64", "training")
    assert {"compiled", "compiled-max", "ours/triton/semi", "ours/cuda/vendor"} <= sampled
    assert not {"compiled", "compiled-max"} & s.contenders_of("layers", "resnet50/56x56-64-k3s1-64", "explanation")
    assert "compiled" not in s.contenders_of("layers", "resnet50/28x28-128-k3s1-128", "training")
    whole = s.contenders_of("models", "resnet50", "training")
    assert "compiled" in whole and "compiled-max" not in whole and "ours/triton/semi" not in whole
    assert "compiled" not in s.contenders_of("models", "resnet50", "explanation loss")
    found = tasks.Bench(s).tasks()
    assert found[0].name == "resnet50/224x224-6-k7s2-64" and len(found) == 137 + 7 * 5
    assert next(task.name for task in found if task.kind == "compiled model") == "resnet50, inference"


def test_compiling_before_is_a_share_of_the_layers(monkeypatch):
    prepared = []
    monkeypatch.setattr(tasks.Bench, "_prepare", lambda self, layer: prepared.append(layer.name))
    for share in ("0/2", "1/2"):
        assert run.main(["--device", "cpu", "--models", "vit_s", "--warm-up", share]) == 0
    assert len(prepared) == len(set(prepared)) == 4
    monkeypatch.undo()
    assert run.main([*ON_CPU, "--measures", "forward", "--warm-up", "0/1"]) == 0


def test_the_command_measures_with_a_limit(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda command, cwd: started.append(command))
    monkeypatch.setattr(gpu, "wait", lambda process, end: True)
    assert gpu.benchmark(tmp_path / "gpu_bench.json", 90, 0.0, 3)
    assert started[0][1:4] == ["-m", "bcos_kernels", "bench"] and "--limit=1.50" in started[0]
    options = settings.parse(started[0][4:])
    assert options.out == tmp_path / "gpu_bench.json" and options.processes == 3 and options.limit == 1.5


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


SHARE = """
def pytest_addoption(parser):
    parser.addoption("--share")
def pytest_collection_modifyitems(config, items):
    i, n = map(int, config.getoption("--share").split("/"))
    items[:] = items[i::n]
"""


@pytest.fixture
def suite(tmp_path):
    """A folder of tests that are shared as those of tests/gpu_kernels are."""
    (tmp_path / "conftest.py").write_text(SHARE)
    (tmp_path / "test_shared.py").write_text(SHARED)
    return tmp_path


def test_shares_are_merged(suite):
    found = gpu.run_tests(60, 2, ("-m", "", f"--rootdir={suite}", str(suite)))
    assert not found["crashed"]
    outcomes = {name.partition("::")[2]: test["outcome"] for name, test in found["tests"].items()}
    assert outcomes == {
        **{f"test_quick[{i}]": "passed" for i in range(4)}, "test_red": "failed", "test_skipped": "skipped"
    }  # fmt: skip
    text = gpu.summary(found)
    assert "| **all** | 4 | 1 | 1 | 0 |" in text and "no reason" in text


def test_a_process_that_dies_and_one_that_is_stopped_are_told(suite):
    (suite / "test_shared.py").write_text("import os\ndef test_a(): pass\ndef test_b(): os._exit(9)\n")
    found = gpu.run_tests(60, 1, ("-m", "", f"--rootdir={suite}", str(suite)))
    assert len(found["crashed"]) == 1 and "ended with 9" in found["crashed"][0]
    assert "not run" in {test["outcome"] for test in found["tests"].values()}
    (suite / "test_shared.py").write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    start = time.monotonic()
    found = gpu.run_tests(8, 1, ("-m", "", f"--rootdir={suite}", str(suite)))
    assert time.monotonic() - start < 30 and not found["crashed"]
    assert "not run" in {test["outcome"] for test in found["tests"].values()}


def test_without_a_gpu_there_is_one_clear_line():
    """``pytest -m gpu`` and ``make gpu``."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/gpu_kernels"]
    run = subprocess.run(command, cwd=stored.ROOT, capture_output=True, text=True)
    assert run.returncode == 4 and "torch.cuda.is_available() is False" in run.stdout
    assert "Error" not in run.stdout.replace("Exit", "")
    with pytest.raises(SystemExit):
        gpu.main([])
