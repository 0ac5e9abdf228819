"""The command line: its commands and their help, doctor, bad arguments, and what an import costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcos_kernels import cli
from bcos_kernels.__main__ import main
from bcos_kernels.core import dispatch, tuned
from bcos_kernels.transform import TRANSFORM

ROOT = Path(__file__).parent.parent


def python(*args, cwd=None, **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)


# ------------------------------------------------------------------------------------------------ the commands


@pytest.mark.parametrize("command", ["", *cli.COMMANDS, "bench report", "bench compare"])
def test_help_fits_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m bcos_kernels {command}".rstrip()) and "\n\n" in text
    assert max(map(len, text.splitlines())) <= 80
    if not command:
        assert all(f"    {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "python -m bcos_kernels: error: the following arguments are required: <command>"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "python -m bcos_kernels run: error: a script is needed"),
        (["run", "--backend", "quick", "x.py"], "'quick': allowed are cpu, "),
        (["doctor", "--no"], "python -m bcos_kernels doctor: error: unrecognized arguments: --no"),
        (["bench", "report", "x", "--no"], "python -m bcos_kernels bench report: error: unrecognized arguments: --no"),
        (["bench", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_bad_arguments(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------------------------ doctor


def doctor(**environment) -> str:
    result = python("-m", "bcos_kernels", "doctor", CUDA_VISIBLE_DEVICES="", BCOS_KERNELS_BACKEND="", **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def line(text: str, of: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(f"{of}: "))
    return found.removeprefix(f"{of}: ")


def test_doctor():
    text = doctor(TRITON_INTERPRET="0")
    words = text.split()
    for word in ("torch", "triton", "compiled", "BCOS_KERNELS_BACKEND", "depthwise", "bfloat16", *TRANSFORM.backends):
        assert any(word in w for w in words), word
    row = next(line for line in text.splitlines() if line.startswith("conv2d, reflect"))
    assert row.split()[2:] == ["reference"] * 4
    assert "  cpu: the padding mode is not 'zeros'" in text
    assert "  reference: serves every call above" in text
    refused = "not used here: device is 'cpu', the Triton kernels run on 'cuda'"
    assert line(text, "triton kernels").startswith(refused)
    assert line(text, "cuda kernels").startswith("not used here: ")


def test_doctor_tells_of_the_kernels_in_the_interpreter(tmp_path):
    text = doctor(TRITON_INTERPRET="1", BCOS_KERNELS_CACHE=str(tmp_path / "choices.json"))
    assert line(text, "triton kernels").startswith("in the interpreter (TRITON_INTERPRET=1)")
    assert line(text, "tuned choices").startswith(f"0 for interpreter, torch {torch.__version__}, triton")


def test_doctor_tells_why_no_choices_can_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuned, "PATH", tmp_path / "choices.json")
    tuned.PATH.write_text("{")
    assert main(["doctor"]) == 0
    damaged = line(capsys.readouterr().out, "tuned choices")
    assert "by prediction: " in damaged and str(tuned.PATH) in damaged and "delete it" in damaged


@pytest.mark.parametrize("name, known", [("reference", True), ("quick", False)])
def test_doctor_tells_what_the_environment_forces(name, known, monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "FORCED", name)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"BCOS_KERNELS_BACKEND={name}" in shown
    assert ("which is unknown: allowed are cpu, cuda, triton, reference" in shown) != known
    row = next(line for line in shown.splitlines() if line.startswith("linear "))
    assert row.split()[1:] == ["reference" if known else "none"] * 4


# ------------------------------------------------------------------------------------------------ imports


IMPORT = """
import sys, time, torch
before, start = set(sys.modules), time.process_time()
import bcos_kernels
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
heavy = new & {"triton", "bcos", "torchvision", "numpy", "rich", "matplotlib"}
print(seconds, sorted(heavy), "bcos_kernels.cli" in sys.modules, sep=";")
"""


def test_import_is_cheap():
    """Under 50 ms of processor time above torch, and neither anything heavy nor the commands come with it."""
    times = []
    while len(times) < 5 and not any(seconds < 0.05 for seconds in times):  # the first one compiles to bytecode
        seconds, *others = python("-c", IMPORT, PYTHONDONTWRITEBYTECODE="").stdout.strip().split(";")
        assert others == ["[]", "False"]
        times.append(float(seconds))
    assert min(times) < 0.05, times
