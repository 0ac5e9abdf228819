"""The command line: doctor, run, bad arguments, and what an import costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcos_kernels import dispatch, run
from bcos_kernels.__main__ import main

ROOT = Path(__file__).parent.parent


def python(*args, cwd=None, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)


def command(*args, **options):
    return python("-m", "bcos_kernels", *args, **options)


def test_doctor():
    result = command("doctor", BCOS_KERNELS_BACKEND="")
    assert result.returncode == 0, result.stderr
    words = result.stdout.split()
    for word in (
        "torch",
        "triton",
        "compiled",
        "BCOS_KERNELS_BACKEND",
        "depthwise",
        "bfloat16",
        *dispatch.BACKENDS,
    ):
        assert any(word in w for w in words), word
    row = next(line for line in result.stdout.splitlines() if line.startswith("conv2d, reflect"))
    assert row.split()[2:] == ["reference"] * 4
    assert "  cpu: the padding mode is not 'zeros'" in result.stdout
    assert "  reference: serves every call above" in result.stdout


def test_doctor_tells_of_the_kernels_for_gpus(tmp_path):
    """Why they are not used here; in the interpreter how many choices there are, or why none can be read."""

    def line(of: str, **environment):
        result = command("doctor", CUDA_VISIBLE_DEVICES="", **environment)
        assert result.returncode == 0, result.stderr
        (found,) = (line for line in result.stdout.splitlines() if line.startswith(f"{of}: "))
        return found.removeprefix(f"{of}: ")

    refused = "not used here: device is 'cpu', the Triton kernels run on 'cuda'"
    assert line("triton kernels", TRITON_INTERPRET="0").startswith(refused)
    assert line("triton kernels", TRITON_INTERPRET="1").startswith("in the interpreter (TRITON_INTERPRET=1)")
    assert line("cuda kernels").startswith("not used here: ")
    file = tmp_path / "choices.json"
    nothing = f"0 for interpreter, torch {torch.__version__}, triton"
    assert line("tuned choices", TRITON_INTERPRET="1", BCOS_KERNELS_CACHE=str(file)).startswith(nothing)
    file.write_text("{")
    damaged = line("tuned choices", TRITON_INTERPRET="1", BCOS_KERNELS_CACHE=str(file))
    assert "is predicted: " in damaged and str(file) in damaged and "delete it" in damaged


@pytest.mark.parametrize("name, known", [("reference", True), ("quick", False)])
def test_doctor_tells_what_the_environment_forces(name, known, monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "FORCED", name)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"BCOS_KERNELS_BACKEND={name}" in shown
    assert ("which is unknown: allowed are cpu, gpu, cuda, triton, reference" in shown) != known
    row = next(line for line in shown.splitlines() if line.startswith("linear "))
    assert row.split()[1:] == ["reference" if known else "none"] * 4


SCRIPT = """
import sys
import helper
import torch
from bcos.modules import BcosConv2d, BcosLinear
class Odd(BcosLinear):
    def forward(self, in_tensor):
        return super().forward(in_tensor)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = BcosConv2d(6, 4, 3)
        self.head = torch.nn.Sequential(BcosLinear(4, 4), Odd(4, 2))
net = Net()
y = net.head(net.conv(torch.randn(2, 6, 5, 5)).mean((2, 3)))
print(__name__, sys.argv[1:], helper.VALUE, y.shape[1], type(net.conv) is BcosConv2d)
sys.exit(int(sys.argv[1]))
"""
LINE = "bcos_kernels: 2 B-cos layers accelerated, 1 left alone: 1 Odd (class Odd overrides forward)"


@pytest.fixture
def script(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "helper.py").write_text("VALUE = 7\n")
    path = tmp_path / "work" / "train.py"
    path.write_text(SCRIPT)
    return path


def test_run_script(script):
    """As ``python train.py``: arguments, directory on the path, exit code; and every layer accelerated."""
    result = command("run", "--backend", "reference", "work/train.py", "3", "--backend", "x", cwd=script.parent.parent)
    assert result.returncode == 3, result.stderr
    assert result.stdout.split("\n")[0] == "__main__ ['3', '--backend', 'x'] 7 2 False"
    assert result.stderr.splitlines()[-1] == LINE


def test_run_module(script):
    result = command("run", "-m", "train", "0", cwd=script.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[0] == "__main__ ['0'] 7 2 False"
    assert result.stderr.splitlines()[-1] == LINE


@pytest.fixture
def process(monkeypatch):
    """What a run changes in its process is put back."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_run_passes_the_scripts_own_error_on(script, process, capsys):
    script.write_text("raise KeyError('mine')\n")
    with pytest.raises(KeyError, match="mine"):
        main(["run", str(script)])
    assert capsys.readouterr().err == "bcos_kernels: 0 B-cos layers accelerated, 0 left alone\n"


@pytest.mark.parametrize(
    "args, message",
    [
        (["run", "nowhere.py", "--lr", "1"], "bcos_kernels run: no such script: nowhere.py\n"),
        (["run", "-m", "nowhere.at.all"], "bcos_kernels run: no module named 'nowhere.at.all'\n"),
    ],
)
def test_missing_script(args, message, process, capsys):
    assert main(args) == 2
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("broken", [False, True])
def test_run_mends_a_torchvision_of_another_torch(broken, script, process, monkeypatch):
    """``bcos`` cannot be imported beside such a torchvision; one that loads is left as it is."""
    mended = []

    def import_torchvision(name):
        if broken:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(run.importlib, "import_module", import_torchvision)
    monkeypatch.setattr(run.compat, "import_reference", lambda: mended.append(True))
    script.write_text("")
    assert run.main([str(script)]) == 0
    assert mended == [True] * broken


@pytest.mark.parametrize("args", [[], ["fly"], ["run"], ["run", "--backend", "quick", "x.py"], ["doctor", "--no"]])
def test_bad_arguments(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


IMPORT = """
import sys, time, torch
before = set(sys.modules)
start = time.process_time()
import bcos_kernels
print(time.process_time() - start)
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"triton", "bcos", "torchvision", "numpy", "rich", "matplotlib"}))
"""


def test_import_is_cheap():
    """Under 50 ms of processor time above torch, and nothing heavy comes with it."""
    runs = [python("-c", IMPORT).stdout.splitlines() for _ in range(5)]  # the first may write bytecode
    assert runs[0][1] == "[]"
    assert min(float(run[0]) for run in runs) < 0.05
