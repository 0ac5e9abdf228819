"""The GPU's command, as far as it runs without one: the layers' benchmark on the CPU, the shared tests, the report."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import contenders as c
from benchmarks import gpu, gpu_layers, report, stored, workloads

LINEAR = workloads.Layer("vit_s", "linear", (4, 8), 5)
CONV = workloads.Layer("resnet50", "conv2d", (2, 3, 3, 3), 4, (3, 3), (1, 1), (1, 1))
ON_CPU = ("--device", "cpu", "--batch", "4", "--seconds", "0", "--dtype", "float32", "--no-compile")
TINY = """
import sys
from benchmarks import gpu_layers, models, workloads
L = workloads.Layer
gpu_layers.layers = lambda *a, **k: [
    L("vit_s", "linear", (4, 8), 5), L("resnet50", "conv2d", (2, 3, 3, 3), 4, (3, 3), (1, 1), (1, 1))]
gpu_layers.Bench.memory = lambda self: {}
gpu_layers.Bench.host = lambda self: []
sys.exit(gpu_layers.main(sys.argv[1:]))
"""


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(gpu_layers, "layers", lambda *args, **options: [LINEAR, CONV])
    memory = gpu_layers.Bench.memory
    monkeypatch.setattr(gpu_layers.Bench, "memory", lambda self: memory(self, 2))


def test_every_candidate_is_timed_in_the_interpreter(tmp_path, monkeypatch):
    """Each in what it serves, checked before; what does not exist (semi, forward) is left out."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "tiny.json"
    run = subprocess.run(
        [sys.executable, "-c", TINY, *ON_CPU, f"--out={out}"], capture_output=True, text=True, cwd=stored.ROOT
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(out.read_text())
    assert result["complete"] and result["not_measured"] == []
    assert len(result["layers"]) == 6 and not any(row["refused"] for row in result["layers"])
    for row in result["layers"]:
        candidates = {"one-pass", "vendor"} if row["measure"] == "forward" else {"one-pass", "semi", "vendor"}
        assert set(row["seconds"]) == {"plain", "reference", "ours"} | candidates
        assert row["floor"] > 0 and row["ratios"]["vendor/plain"]["n"] >= 5


def test_result_is_stored_and_tabulated(tiny, tmp_path, capsys):
    out = tmp_path / "gpu_layers.json"
    assert gpu_layers.main([*ON_CPU, "--no-candidates", f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    assert {"host", "saved", "rates", "versions", "commit", "command", "machine"} <= result.keys()
    text = report.table(result)
    assert text.count("| vit_s/4-8-5 |") == 3 and text.strip() in capsys.readouterr().out
    ratio = result["layers"][0]["ratios"]["ours/plain"]["p50"]
    assert f"| forward, ours ÷ plain: ViT-S linears | {ratio:.2f} | ≤ 1.05 |" in text
    assert "| forward, torch.compile(reference) ÷ ours | – | ≥ 1.6 |  | 0 layers |" in text
    assert "details" not in report.table(result, layers=False)


def test_a_wrong_layer_gets_no_figure(tiny, tmp_path, monkeypatch):
    build = c.build

    def sabotaged(*args):
        contenders = build(*args)
        with torch.no_grad():
            contenders["ours"].linear.weight[0] *= -1
        return contenders

    monkeypatch.setattr(c, "build", sabotaged)
    out = tmp_path / "gpu_layers.json"
    assert gpu_layers.main([*ON_CPU, "--no-candidates", f"--out={out}"]) == 1
    rows = json.loads(out.read_text())["layers"]
    assert all("ours" in row["refused"] and "ours" not in row["seconds"] and not row["ratios"] for row in rows)


def test_a_failing_layer_is_reported_and_the_others_are_timed(tiny, tmp_path, monkeypatch):
    timed = c.timed

    def failing(layer, *args):
        if layer is LINEAR:
            raise torch.OutOfMemoryError("no room")
        return timed(layer, *args)

    monkeypatch.setattr(c, "timed", failing)
    out = tmp_path / "gpu_layers.json"
    assert gpu_layers.main([*ON_CPU, "--no-candidates", f"--out={out}"]) == 1
    result = json.loads(out.read_text())
    refused = {row["layer"]: row["refused"] for row in result["layers"]}
    assert refused[LINEAR.name] == {"every contender": "OutOfMemoryError: no room"} and not refused[CONV.name]
    assert "no room" in report.table(result)


def test_time_that_is_used_up_is_said(tiny, tmp_path):
    out = tmp_path / "gpu_layers.json"
    assert gpu_layers.main([*ON_CPU, "--no-candidates", "--budget=0", f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    assert not result["complete"] and result["not_measured"] == [LINEAR.name, CONV.name]
    assert f"Not measured for want of time: {LINEAR.name}, {CONV.name}." in report.table(result)


def test_the_check_of_some_images_sees_an_error_in_them():
    """Every second row is compared: a wrong dx or dw of those is refused."""
    contenders = c.build(LINEAR, False)
    with torch.no_grad():
        contenders["ours"].linear.weight[0] *= -1
    for measure in gpu_layers.MEASURES:
        calls, refused = c.timed(LINEAR, contenders, measure, torch.empty(0), 2, True)
        assert "ours" in refused and set(calls) == {"plain", "reference"}


def test_explanation_alone_is_the_gradient_of_x():
    contenders = c.build(CONV, False)
    calls, _ = c.timed(CONV, contenders, "explanation", torch.empty(0), 1, True)
    first, again = calls["ours"](), calls["ours"]()
    assert first.shape == CONV.input_shape and torch.equal(first, again)


def test_floor():
    rates = {"bytes/s": 1e3, "FLOP/s": 1e9}
    y, like = torch.empty(4, 5), torch.empty(0, dtype=torch.bfloat16)
    assert gpu_layers.floor(LINEAR, "forward", like, y, rates) == pytest.approx(2 * (32 + 40 + 20) / 1e3)
    rates = {"bytes/s": 1e9, "FLOP/s": 1e3}
    assert gpu_layers.floor(CONV, "training", like, torch.empty(2, 4, 3, 3), rates) == pytest.approx(
        3 * 2 * 72 * 27 / 1e3
    )


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
    """A folder of tests that are shared as those of tests/triton_kernels are."""
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
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/triton_kernels"]
    run = subprocess.run(command, cwd=stored.ROOT, capture_output=True, text=True)
    assert run.returncode == 4 and "torch.cuda.is_available() is False" in run.stdout
    assert "Error" not in run.stdout.replace("Exit", "")
    with pytest.raises(SystemExit):
        gpu.main([])
