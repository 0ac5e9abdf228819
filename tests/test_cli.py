"""The command line: doctor, bad arguments, and what an import costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcos_kernels.__main__ import main
from bcos_kernels.core import dispatch
from bcos_kernels.transform import TRANSFORM

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
        *TRANSFORM.backends,
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
    assert ("which is unknown: allowed are cpu, cuda, triton, reference" in shown) != known
    row = next(line for line in shown.splitlines() if line.startswith("linear "))
    assert row.split()[1:] == ["reference" if known else "none"] * 4


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
