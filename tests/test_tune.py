"""Tuning: what is measured, stored and refused; the choice in the report; the command."""

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from emulated import GXX, HEADERS, cudnn, module

import bcos_kernels as bk
from bcos_kernels.__main__ import main
from bcos_kernels.core import env, tuned
from bcos_kernels.dynamic_alignment import Call as AlignmentCall
from bcos_kernels.dynamic_alignment import Spec as AlignmentSpec
from bcos_kernels.norm import Call, Spec
from bcos_kernels.transform.call import of_shapes

ROOT = Path(__file__).parent.parent
tuning = importlib.import_module("bcos_kernels.tuning")

NET = """
import interpreter
import json, signal, sys
import torch
from torch import nn
import bcos_kernels as bk
from bcos_kernels.core import choice, tuned
from bcos_kernels.gpu import timing
from bcos_kernels.transform.triton import implicit_gemm

class Net(nn.Module):
    def __init__(self, backend="triton"):
        super().__init__()
        self.conv = bk.BcosConv2d(3, 4, 3, padding=1, backend=backend)
        conv = bk.BcosConv2d(4, 4, 3, padding=1, backend=backend)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), conv)
        self.head = bk.BcosLinear(4, 3, backend=backend)
        self.unused = bk.BcosLinear(4, 3, backend=backend)

    def forward(self, x):
        return self.head(self.body(self.conv(x)).mean((2, 3)))

x = torch.randn(2, 3, 3, 3)
"""
"""Two convolutions of unequal and one linear layer of equal calls: three distinct ones.

``interpreter`` is that of ``tests/gpu_kernels``, which takes Triton's own less time.
"""


def python(*args, cache, cwd=None, **environment):
    """A process with Triton's interpreter and no GPU."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    path = str(ROOT), str(ROOT / "tests" / "gpu_kernels"), os.environ.get("PYTHONPATH")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    env |= {"BCOS_KERNELS_CACHE": str(cache), "BCOS_KERNELS_BACKEND": "", **environment}
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)


def script(code, cache):
    result = python("-c", NET + code, cache=cache)
    assert result.returncode == 0, result.stderr
    return result


TUNE = """
model = Net()
model.body[1].eval()
model(x).sum().backward()
state = {name: t.clone() for name, t in model.state_dict().items()}
grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
flags, random = [m.training for m in model.modules()], torch.get_rng_state()
model.body[1].train()
result = bk.tune(model, x)
model.body[1].eval()
assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
assert len(grads) == 5 and all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads)
assert [m.training for m in model.modules()] == flags and torch.equal(torch.get_rng_state(), random)
assert all(t.seconds > 0 and t.refusal is None for row in result.rows for t in row.trials)
print(result)
"""

REPORT = """
model = Net()
before = torch.get_rng_state(), model.body[0].running_mean.clone()
report = bk.report(model, x)
assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(model.body[0].running_mean, before[1])
print(json.dumps([[row.name, *row.choices] for row in report.rows]))
print(json.dumps([row.choices for row in bk.report(model, x[:1]).rows]))
print(bk.report(model))
x.requires_grad_()
with choice.forced(None) as chosen:
    model.eval()(x).sum().backward()
print(*(f"{direction}: {made.reason}" for direction, (_, made) in sorted(chosen.items())))
"""


@pytest.mark.slow
def test_winners_serve_other_processes(tmp_path):
    cache = tmp_path / "deep" / "choices.json"
    result = script(TUNE, cache)
    lines = result.stdout.splitlines()
    assert len(lines) == 1 + 9 + 1 and "9 of 9 measured on interpreter" in lines[-1] and str(cache) in lines[-1]
    assert "100%" in result.stderr  # the bar
    (stored,) = json.loads(cache.read_text())["devices"].values()
    assert len(stored) == 9
    winners = []
    for call, backends in stored.items():
        (choice,) = backends.values()  # the interpreter's only backend
        winners.append(f"triton {choice['candidate']}")
        assert choice["candidate"] == min(choice["seconds"], key=choice["seconds"].get)
        assert (choice["tile"] is None) == (choice["candidate"] == "vendor")
        candidates = {"one-pass", "vendor"} if call.startswith("forward") else {"one-pass", "semi", "vendor"}
        assert set(choice["seconds"]) == candidates

    known, other, *text, made = script(REPORT, cache).stdout.splitlines()
    assert made == "forward: measured on this device training: measured on this device"
    rows = json.loads(known)
    assert [name for name, *_ in rows] == ["conv", "body.2", "head", "unused"]
    expected = [f"{winner} (measured on this device)" for winner in winners]
    assert [choice for _, *row in rows[:3] for choice in row] == expected
    assert rows[3][1:] == ["not run by the example"] * 3
    assert all("(predicted: " in choice for row in json.loads(other)[:3] for choice in row)
    assert "depends on the input: call report(model, example_input)" in " ".join(" ".join(text).split())

    def command(*args):
        result = python("-m", "bcos_kernels", *args, cache=cache)
        assert result.returncode == 0, result.stderr
        return result.stdout

    listed = command("tune", "--list")
    assert str(cache) in listed and "9 choices" in listed and all(call in listed for call in stored)
    assert f"tuned choices: 9 for interpreter, torch {torch.__version__}" in command("doctor")
    assert command("tune", "--clear").startswith("9 choices of interpreter")
    assert json.loads(cache.read_text())["devices"] == {}


if GXX and HEADERS:

    @pytest.mark.slow
    def test_candidates_of_both_backends_are_measured(tmp_path):
        """Triton's interpreter and the emulation of the CUDA kernels together stand in for a GPU with both."""
        code = """
import where
where.load_emulated()
model = Net("cuda,triton")
print(bk.tune(model, x, progress=False))
print(bk.report(model, x).table())
"""
        cache = tmp_path / "choices.json"
        emulated = {"BCOS_TEST_EMULATED": str(module()), "BCOS_TEST_CUDNN": str(cudnn())}
        result = python("-c", NET + code, cache=cache, **emulated)
        assert result.returncode == 0, result.stderr
        head, *_ = lines = result.stdout.splitlines()
        for way in ("cuda one-pass", "cuda semi", "cuda vendor", "triton one-pass", "triton semi", "triton vendor"):
            assert f"{way}, µs" in head
        assert any(line.startswith("9 of 9 measured") for line in lines)
        assert not any(line.startswith("refused") for line in lines)
        (stored,) = json.loads(cache.read_text())["devices"].values()
        assert all(set(known) == {"cuda", "triton"} for known in stored.values())
        row = next(line for line in lines if line.startswith("conv "))
        assert row.count("(measured on this device)") == 3 and " cuda,triton " in row


INTERRUPT = """
usual, served = choice.choose, []
def measure(*args, measure=timing.measure):
    served.append(args[1])
    if len(served) == 3:
        signal.raise_signal(signal.SIGINT)
    return measure(*args)
timing.measure = measure
result = bk.tune(Net(), x, directions=("forward", "explanation"), progress=False)
assert choice.choose is usual
print(len(result.rows), result.calls, len(tuned.read()[tuned.device()]))
print(str(result).splitlines()[-1])
"""


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured(tmp_path):
    counts, line = script(INTERRUPT, tmp_path / "c.json").stdout.splitlines()
    assert counts == "2 6 2"
    assert line.startswith("interrupted: 2 of 6 measured")


WRONG = """
def forward(call, x, weights, bias, b, out, tile, forward=implicit_gemm.forward):
    if tile.m == 32:
        raise MemoryError("out of resources")
    forward(call, x, weights, bias, b, out, tile)
    out.y.mul_(1.01)
implicit_gemm.forward = forward
result = bk.tune(bk.BcosConv2d(3, 4, 1, backend="triton"), torch.randn(1, 3, 7, 7), directions=("forward",))
(row,) = result.rows
print(row.winner.candidate.name, [t.refusal is not None for t in row.trials])
print(result)
"""


@pytest.mark.slow
def test_failing_and_wrong_kernels_are_refused(tmp_path):
    line, _, row, *refused, last = script(WRONG, tmp_path / "c.json").stdout.splitlines()
    assert line == "vendor [True, True, False]"
    assert row.split()[-1] == "–"  # the predicted kernel was refused: no gain to tell
    assert "its y differs from the vendor's by 1.0e-02, and 4.0e-03 is allowed" in refused[0]
    assert "MemoryError: out of resources" in refused[1]
    assert last.startswith("1 of 1 measured")


@pytest.mark.slow
def test_the_command(tmp_path):
    """A model of a module in the working directory, with arguments, autocast and some directions."""
    (tmp_path / "mine.py").write_text(
        "import bcos_kernels as bk\ndef make(n): return bk.BcosLinear(4, n)\ndef plain(): return bk.functional\n"
    )
    arguments = ["--input", "2,4", "--factory-args", '{"n": 3}', "--directions", "forward", "--amp", "--dtype", "bf16"]

    def command(name, **environment):
        options = {"cache": tmp_path / "c.json", "cwd": tmp_path, **environment}
        return python("-m", "bcos_kernels", "tune", "--model", f"mine:{name}", *arguments, **options)

    result = command("make", BCOS_KERNELS_BACKEND="triton")
    assert result.returncode == 0, result.stderr
    assert "linear 2×4 -> 3 bfloat16" in result.stdout
    (stored,) = json.loads((tmp_path / "c.json").read_text())["devices"].values()
    (call,) = stored
    assert call.startswith("forward ") and {"weight_dtype=float32", "out_dtype=float32"} <= set(call.split())
    result = command("make")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "no call is served by GPU kernels" in result.stderr and "1 served by cpu" in result.stderr


@pytest.mark.parametrize("show, lines", [(True, "tune: 1 of 2: a\ntune: 2 of 2: b\n"), (False, "")])
def test_progress_without_rich(show, lines, monkeypatch, capsys):
    for name in ("rich", "rich.console", "rich.progress"):
        monkeypatch.setitem(sys.modules, name, None)
    with tuning._progress(2, show) as advance:
        advance("a")
        advance("b")
    assert capsys.readouterr() == ("", lines)


# bad input


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(env, "INTERPRETED", False)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((3, torch.ones(1)), {}, TypeError, r"model=3: a torch\.nn\.Module is needed"),
        ((torch.nn.ReLU(), "x"), {}, TypeError, "example_input='x': a tensor or a tuple"),
        ((torch.nn.ReLU(), (1, 2)), {}, TypeError, r"example_input=\(1, 2\): a tensor or a tuple"),
        ((torch.nn.ReLU(), torch.ones(1)), {"directions": ("up",)}, ValueError, r"directions=\('up',\): allowed are"),
        ((torch.nn.ReLU(), torch.ones(1)), {"directions": "forward"}, ValueError, "directions='forward': allowed are"),
        ((torch.nn.ReLU(), torch.ones(1)), {"directions": ()}, ValueError, r"directions=\(\): allowed are"),
        (
            (torch.nn.ReLU(), torch.ones(1)),
            {},
            RuntimeError,
            "on the GPU that will run the model, and torch finds no GPU",
        ),
    ],
)
def test_bad_input(arguments, options, error, message, no_gpu):
    with pytest.raises(error, match=message):
        bk.tune(*arguments, **options)


@pytest.mark.parametrize(
    "model, message",
    [
        (torch.nn.ReLU(), "model has no B-cos layers"),
        (bk.BcosLinear(1, 2, backend="reference"), "served by GPU kernels.*: B-cos layers 1 served by reference"),
    ],
)
def test_nothing_to_tune(model, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "check_device", lambda: None)
    monkeypatch.setattr(tuned, "PATH", tmp_path / "choices.json")
    with pytest.raises(ValueError, match=message):
        bk.tune(model, torch.ones(2, 1))


@pytest.mark.parametrize("example", ["x", (1, None)])
def test_report_needs_a_tensor(example):
    with pytest.raises(TypeError, match=r"example_input=.*: a tensor or a tuple"):
        bk.report(bk.BcosLinear(2, 2), example)


def test_report_of_other_backends_runs_nothing():
    layer = bk.BcosLinear(2, 2, backend="reference")
    assert bk.report(layer, torch.ones(1, 77)).rows == bk.report(layer).rows


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "math:sqrt", "--input", "1,2"], "on the GPU that will run the model, and torch finds no GPU"),
        (["--model", "math.sqrt", "--input", "1,2"], "--model math.sqrt: pkg.module:factory is needed"),
        (["--model", "math:nowhere", "--input", "1,2"], "--model math:nowhere: math has no nowhere"),
        (["--model", "math:pi", "--input", "1,2"], "--model math:pi: pi is float, not callable"),
        (["--model", "nowhere.at.all:f", "--input", "1,2"], "No module named 'nowhere'"),
    ],
)
def test_bad_models(arguments, message, no_gpu, capsys):
    assert main(["tune", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and err.startswith("bcos_kernels tune: ") and message in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--model and --input are needed, or --list, or --clear"),
        (["--model", "math:sqrt", "--input", "1,0"], "'1,0': positive sizes are needed"),
        (["--model", "math:sqrt", "--input", "1,2", "--factory-args", "[1]"], "'[1]': a JSON object is needed"),
        (["--directions", "up"], "argument --directions: invalid choice: 'up'"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["tune", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_dynamic_alignment_is_described_for_the_table():
    call = AlignmentCall(AlignmentSpec((3, 2), (2, 2), (1, 0), "l1"), "cuda", (2, 8, 5, 5), 16, 10, torch.bfloat16)
    told = "alignment 2×8×5×5 -> 10 kernel=(3,2) stride=2 padding=(1,0) rank=16 l1 bfloat16"
    assert call.label == told


def test_a_norm_is_described_for_the_table():
    call = Call(Spec("group", 4, True), "cuda", (2, 8, 5, 5), torch.bfloat16)
    assert call.label == "norm 2×8×5×5 over group centered bfloat16"


@pytest.mark.parametrize("dtype, allowed", [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_way_is_refused_for_what_rounding_does_not_explain(dtype, allowed):
    from bcos_kernels.gpu import timing

    call = of_shapes((2, 8), (4, 8), dtype=dtype)
    truth = {"y": torch.ones(2, 4, dtype=torch.promote_types(dtype, torch.float32))}
    assert timing._disagreement(call, {"y": truth["y"] + allowed}, truth) is None
    assert "its y differs" in timing._disagreement(call, {"y": truth["y"] + 100 * allowed}, truth)


def test_other_threads_start_their_kernels_while_those_of_a_call_are_listed(monkeypatch):
    """Else a network that runs beside tune would compute nothing, and say nothing of it."""
    from bcos_kernels.gpu import launch  # here, because it imports Triton

    class Kernel:
        started = 0

        def __getitem__(self, grid):
            return self.start

        def start(self, *arguments, **options):
            self.started += 1

    monkeypatch.setattr(launch, "INTERPRETED", True)  # a start by the interpreter needs no driver
    kernel, x = Kernel(), torch.ones(1)
    with launch.recording() as listed:
        launch.launch(kernel, (1,), x)
        thread = threading.Thread(target=launch.launch, args=(kernel, (1,), x))
        thread.start()
        thread.join()
    assert (len(listed), kernel.started) == (1, 1)
