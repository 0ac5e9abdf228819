"""The command line: its commands and their help, doctor, bad arguments, and what an import costs."""

import json
import re
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from programs import ROOT, outcome, start

import bcos_kernels
from bcos_kernels import cli
from bcos_kernels.__main__ import main
from bcos_kernels.cli import doctor
from bcos_kernels.core import dispatch, tuned
from bcos_kernels.transform import TRANSFORM

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


BENCHMARKS = (
    "alignments", "cudnn_plans.__main__", "decisions", "fingerprints", "gpu", "host_time", "launches", "networks",
    "triton_aot", "conversion", "coverage",
)  # fmt: skip


@pytest.mark.parametrize("module", BENCHMARKS)
def test_help_of_a_benchmark_is_its_documentation_without_markup(module, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    command = import_module(f"benchmarks.{module}")
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m benchmarks.{module.partition('.')[0]} [-h]")
    assert not re.search("`|[*]{2}|:[a-z]+:", text) and max(map(len, text.splitlines())) <= 80
    last = command.__doc__.split()[-1].strip("`.")
    assert f"{last}.\n\n" in text, "the whole documentation is there"


@pytest.mark.parametrize(
    "module, option, words",
    [
        ("decisions", "--seconds=nan", "--seconds: nan: must be at least 1"),
        ("host_time", "--seconds=-1", "--seconds: -1: must be at least 0"),
        ("host_time", "--device=tpu", "--device tpu: allowed are cpu, cuda and cuda:<index>"),
        ("triton_aot", "--workers=0", "--workers: 0: must be at least 1"),
        ("cudnn_plans.__main__", "--workers=0", "--workers: 0: must be at least 1"),
    ],
)
def test_bad_options_of_a_benchmark(module, option, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        import_module(f"benchmarks.{module}").main([option])
    assert words in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"bcos_kernels {bcos_kernels.__version__}\n"


def test_the_console_script_names_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/bcos-kernels", "bench", "report", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.startswith("usage: bcos-kernels bench report ")


# ------------------------------------------------------------------------------------------------ doctor


def line(text: str, of: str) -> str:
    """What a report says of something, which may take several lines of the terminal."""
    (found,) = (line for line in text.replace("\n    ", " ").splitlines() if line.startswith(f"{of}: "))
    return found.removeprefix(f"{of}: ")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dispatch, "FORCED", None)


def test_doctor(no_gpu, capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    words = text.split()
    assert text.splitlines()[0] == "verdict: fast: C++ kernels on the CPU; missing for more: a GPU"
    for word in (
        "torch",
        "torchvision",
        "triton",
        "compiled",
        "BCOS_KERNELS_BACKEND",
        "depthwise",
        "bfloat16",
        *TRANSFORM.backends,
    ):
        assert any(word in w for w in words), word
    row = next(line for line in text.splitlines() if line.startswith("conv2d, reflect"))
    assert row.split()[2:] == ["cpu"] * 4
    assert "  cpu: serves every call above" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "  reference: serves every call above" in text
    refused = "not used here: device is 'cpu', the Triton kernels run on 'cuda'"
    assert line(text, "triton kernels").startswith(refused)
    assert line(text, "cuda kernels").startswith("not used here: ")
    assert line(text, "cuDNN graphs") == line(text, "cuda kernels")
    assert line(text, "tuned choices").startswith("not needed here: ")


def test_doctor_says_of_an_extension_for_another_torch_what_the_documentation_says(monkeypatch):
    other = SimpleNamespace(build_info=lambda: {"torch": "2.0.1", "cuda": False})
    monkeypatch.setattr(doctor.extension, "imported", lambda: other)
    told = doctor._build()
    assert told.startswith(f"built for torch 2.0.1, not for {torch.__version__}: build it again")
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert told.replace("2.0.1", "X").replace(torch.__version__, "Y").partition(" (")[0] in page


def test_doctor_has_the_same_as_json(no_gpu, capsys):
    assert main(["doctor"]) == main(["doctor", "--json"]) == 0
    text, _, told = capsys.readouterr().out.partition("{")
    found = json.loads("{" + told)
    assert line(text, "verdict") == found["verdict"] and line(text, "environment") == found["state"]["environment"]
    assert found["served"]["cpu"]["conv2d, reflect"] == dict.fromkeys(
        ["float32", "float64", "bfloat16", "float16"], "cpu"
    )
    assert found["why not"]["reference"] == [] and found["versions"]["torch"].startswith(torch.__version__)


@pytest.mark.parametrize(
    "chosen, verdict",
    [
        ({"cpu": "reference"}, "slow: the reference formula on the CPU; missing for more: the C++ kernels, a GPU"),
        (
            {"cpu": "cpu", "cuda": "triton"},
            "fast: C++ kernels on the CPU, Triton kernels on the GPU; missing for more: the CUDA kernels",
        ),
        ({"cpu": "cpu", "cuda": "cuda,triton"}, "fast: C++ kernels on the CPU, CUDA and Triton kernels on the GPU"),
    ],
)
def test_the_verdict_tells_what_serves_and_what_is_missing(chosen, verdict, no_gpu):
    assert doctor._verdict(chosen) == verdict


@pytest.mark.slow
def test_doctor_tells_of_the_kernels_in_the_interpreter(tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "BCOS_KERNELS_BACKEND": ""}
    environment["BCOS_KERNELS_CACHE"] = str(tmp_path / "choices.json")
    status, text, errors = outcome(start("-m", "bcos_kernels", "doctor", cwd=tmp_path, **environment))
    assert status == 0, errors
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
    assert f"BCOS_KERNELS_BACKEND={name} decides" in line(shown, "verdict")
    forced = line(shown, "environment")
    assert f"BCOS_KERNELS_BACKEND={name}" in forced
    assert ("which is unknown: allowed are cpu, cuda, triton, reference" in forced) != known
    row = next(line for line in shown.splitlines() if line.startswith("linear "))
    assert row.split()[1:] == ["reference" if known else "none"] * 4


def test_doctor_tells_which_layers_the_environment_does_not_mean(monkeypatch, capsys, recwarn):
    monkeypatch.setattr(dispatch, "FORCED", "torch")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    told = "it is no backend of transform and norm, whose calls are served as without it"
    assert told in line(shown, "environment") and not recwarn.list
    rows = {line.split()[0]: line.split()[-4:] for line in shown.splitlines() if line[:7] in ("linear ", "dynamic")}
    assert rows == {"linear": ["cpu"] * 4, "dynamic": ["torch"] * 4}


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


def test_import_is_cheap(tmp_path):
    """Under 50 ms of processor time above torch, and neither anything heavy nor the commands come with it."""
    times = []
    while len(times) < 5 and not any(seconds < 0.05 for seconds in times):  # the first one compiles to bytecode
        _, printed, _ = outcome(start("-c", IMPORT, cwd=tmp_path, PYTHONDONTWRITEBYTECODE=""))
        seconds, *others = printed.strip().split(";")
        assert others == ["[]", "False"]
        times.append(float(seconds))
    assert min(times) < 0.05, times
