"""Every command with a wrong argument: one line on stderr that names it, nothing on stdout, exit status 2, no work."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from made_results import result, stored
from PIL import Image

from bcos_kernels import cli
from bcos_kernels.cli import doctor, main
from bcos_kernels.cli.bench import workloads

MINE = """
from torch import nn
number = 3
def plain():
    return nn.Linear(4, 4)
def text():
    return "no module"
def mistaken():
    return nn.Linear(4, text().width)
"""
BAD = {
    "": "arguments are required: <command>",
    "fly": "invalid choice: 'fly'",
    "--no": "arguments are required: <command>",
    "doctor x": "unrecognized arguments: x",
    "doctor --no": "unrecognized arguments: --no",
    "demo --epochs 0": "--epochs: 0: must be at least 1",
    "demo --epochs x": "invalid int value: 'x'",
    "demo --seed x": "invalid int value: 'x'",
    "demo --out no/demo.png": "--out no/demo.png: the folder ",
    "demo --out val": "--out val: it is a folder",
    "demo --out demo.no": "--out demo.no: names that end with ",
    "run": "a script is needed",
    "run no.py": "no such script: no.py",
    "run -m no_such_module": "no module named 'no_such_module'",
    "run --backend quick no.py": "backend='quick': allowed are 'cpu', ",
    "explain val --hub resnet18": "arguments are required: --out",
    "explain val --out o": "one of --model and --hub is needed",
    "explain val --out o --hub resnet18 --model mine:plain": "one of --model and --hub is needed",
    "explain --out o --hub resnet18": "either IMAGES or --dataset is needed",
    "explain val --out o --dataset MNIST --hub resnet18": "either IMAGES or --dataset is needed",
    "explain no --out o --hub resnet18": "no: there is no such file or folder",
    "explain empty --out o --hub resnet18": "empty: no images",
    "explain --dataset No --out o --hub resnet18": "--dataset No: torchvision.datasets has no such",
    "explain --dataset MNIST --out o --hub resnet18": "--dataset MNIST --root .: Dataset not found",
    "explain val --out o --hub no": "--hub no: allowed are resnet18, ",
    "explain val --out o --model mine": "--model mine: pkg.module:factory is needed",
    "explain val --out o --model no_such_module:x": "--model no_such_module:x: No module named 'no_such_module'",
    'explain val --out o --model mine:plain --factory-args {"n":3}': 'mine:plain with --factory-args {"n": 3}: ',
    "explain val --out o --model mine:no": "--model mine:no: mine has no no",
    "explain val --out o --model mine:number": "number is int, not callable",
    "explain val --out o --model mine:text": "returned str, not a torch.nn.Module",
    "explain val --out o --model mine:plain": "Linear has no B-cos layers",
    "explain val --out o --model mine:plain --weights no.pt": "--weights no.pt: there is no such file",
    "explain val --out o --model mine:plain --weights half.json": "--weights half.json: not a checkpoint",
    "explain val --out o --hub resnet18 --factory-args x": "a JSON object is needed",
    "explain val --out o --hub resnet18 --save all": "--save all: allowed are map, rgba, weights",
    "explain val --out o --hub resnet18 --top 0": "--top: 0: must be at least 1",
    "explain val --out o --hub resnet18 --smooth 2": "--smooth 2: 0 or an odd positive number",
    "explain val --out o --hub resnet18 --image-size 0": "--image-size: 0: must be at least 1",
    "explain val --out o --hub resnet18 --workers -1": "--workers: -1: must be at least 0",
    "explain val --out o --hub resnet18 --dtype x": "invalid choice: 'x'",
    "evaluate": "arguments are required: metric",
    "evaluate iou val --hub resnet18": "invalid choice: 'iou'",
    "evaluate epg val --hub resnet18": "epg needs --boxes",
    "evaluate epg val --hub resnet18 --boxes no.json": "--boxes no.json: ",
    "evaluate epg val --hub resnet18 --boxes half.json": "--boxes half.json: ",
    "evaluate gridpg val": "one of --model and --hub is needed",
    "evaluate gridpg val --hub resnet18 --cells 5": "--cells 5: a square number of at least 4",
    "evaluate gridpg val --hub resnet18 --grids 0": "--grids: 0: must be at least 1",
    "evaluate gridpg val --hub resnet18 --chunk 0": "--chunk: 0: must be at least 1",
    "evaluate gridpg val --hub resnet18 --smooth -1": "--smooth -1: 0 or an odd positive number",
    "evaluate gridpg val --hub resnet18 --threshold 2": "--threshold 2.0: must be at least 0 and below 1",
    "evaluate gridpg val --hub resnet18 --out no/x.json": "--out no/x.json: the folder ",
    "bench fast": "invalid choice: 'fast'",
    "bench --module functools:reduce --input 1,4": "--module functools:reduce with --factory-args {}: ",
    "bench --models no": "--models no: allowed are resnet50, ",
    "bench --layers (": "--layers '(': no regular expression",
    "bench --measures no": "--measures no: allowed are forward, ",
    "bench --contenders no": "--contenders no: allowed are plain, ",
    "bench --device tpu": "--device tpu: allowed are cpu, cuda",
    "bench --dtype x": "invalid choice: 'x'",
    "bench --batch 0": "--batch: 0: must be at least 1",
    "bench --seconds nan": "--seconds: nan: must be at least 0",
    "bench --out val --device cpu": "--out val: it is a folder",
    "bench --limit 0": "--limit 0.0: must be above 0",
    "bench --input 1,x": "'1,x': positive sizes are needed",
    "bench --module mine:plain": "--module and --input belong together",
    "bench --resume no.json --device cpu": "--resume no.json: the result of an unfinished run",
    "bench report": "arguments are required: RESULT",
    "bench report no.json": "no.json: No such file or directory",
    "bench report half.json": "half.json: no JSON",
    "bench report made.json --html no/x.html": "no/x.html: the folder ",
    "bench report made.json --markdown val": "val: it is a folder",
    "bench report made.json --plots half.json": "--plots half.json: a folder is needed",
    "bench report made.json --readme no.md": "--readme no.md: there is no such file",
    "bench compare made.json": "arguments are required: B",
    "bench compare made.json no.json": "no.json: No such file or directory",
    "bench compare made.json made.json --least x": "'x': a percentage above 0 is needed",
    "bench compare made.json made.json --anchor x": "invalid choice: 'x'",
    "bench compare made.json made.json --markdown no/x.md": "--markdown no/x.md: the folder ",
    "tune": "--model and --input are needed",
    "tune --model mine:plain": "--model and --input are needed",
    "tune --model mine:plain --input x": "'x': positive sizes are needed",
    "tune --model mine:plain --input 1,4 --dtype x": "invalid choice: 'x'",
    "tune --model mine:plain --input 1,4 --directions x": "invalid choice: 'x'",
    "tune --model mine:no --input 1,4": "--model mine:no: mine has no no",
}
"""Arguments -> what the line says."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bad")
    (made / "empty").mkdir()
    (made / "val" / "a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(made / "val" / "a" / "0.png")
    (made / "mine.py").write_text(MINE)
    (made / "half.json").write_text("{half")
    stored(made / "made.json", result())
    return made


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the commands add the working directory to it
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def status(arguments: str) -> int:
    try:
        return main(arguments.split())
    except SystemExit as ended:
        return ended.code


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("arguments", BAD)
def test_one_line_and_status_2(arguments, folder, capsys):
    before = files(folder)
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert BAD[arguments] in err and err.count("\n") == 1 and err.endswith("\n") and out == ""
    command = next(iter(cli.COMMANDS.keys() & arguments.split()[:1]), "")
    assert err.removeprefix("python -m ").startswith(f"bcos_kernels {command}".rstrip())
    assert files(folder) == before


def test_every_command_is_among_them():
    named = {arguments.split()[0] for arguments in BAD if arguments}
    assert set(cli.COMMANDS) <= named
    assert {"bench report", "bench compare"} <= {" ".join(arguments.split()[:2]) for arguments in BAD}


@pytest.mark.parametrize("argv", ["explain val --out o --model {}", "bench --input 1,4 --device cpu --module {}"])
@pytest.mark.parametrize(
    "code, words",
    [
        ("mine:mistaken", "AttributeError: 'str' object has no attribute 'width'"),
        ("wrong:made", "ValueError: no such width"),
        ("unread:made", "SyntaxError: '(' was never closed (unread.py, line 1)"),
    ],
)
def test_an_error_of_the_users_code_is_told_with_its_traceback(argv, code, words, folder, capsys):
    (folder / "wrong.py").write_text("raise ValueError('no such width')")
    (folder / "unread.py").write_text("made = (")
    assert status(argv.format(code)) == 2
    *traced, told = capsys.readouterr().err.splitlines()
    assert told.startswith(f"bcos_kernels {argv.split()[0]}: ") and told.endswith(f" {code}: {words}")
    name = code.partition(":")[0]
    assert any(f'{name}.py", line' in line for line in traced)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", ["bench --device cuda", "tune --model mine:plain --input 1,4"])
def test_without_a_gpu(arguments, capsys):
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert "GPU" in err and err.count("\n") == 1 and out == ""


def test_a_folder_that_cannot_be_written_is_told_before_the_work(folder, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a file system that is only read
    assert status(f"evaluate gridpg val --hub resnet18 --out {folder / 'x.json'}") == 2
    assert f"x.json: nothing can be written in the folder {folder} (see" in capsys.readouterr().err


def interrupted(*_):
    raise KeyboardInterrupt


NOT_THERE = (
    "needs {}, not installed here: pip install 'bcos_kernels[explain]' torch==" + torch.__version__.split("+")[0]
)


@pytest.mark.parametrize("argv", ["explain {} --hub resnet18 --out {}", "evaluate gridpg {} --hub resnet18"])
def test_a_package_of_an_extra_that_is_not_installed_is_named(argv, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.setitem(sys.modules, "bcos", None)
    assert main(argv.format(tmp_path, tmp_path / "out").split()) == 2
    assert NOT_THERE.format("bcos") in capsys.readouterr().err


@pytest.mark.parametrize("argv", ["explain val --hub simple_vit_ti_patch16_224 --out o", "bench --list --layers vit_s"])
def test_the_package_that_a_transformer_needs_is_named(argv, monkeypatch, capsys):
    """The entry points of ``bcos`` raise an error of their own without it."""
    workloads._on_meta.cache_clear()
    workloads._read.cache_clear()
    monkeypatch.setitem(sys.modules, "einops", None)
    assert status(argv) == 2
    assert capsys.readouterr().err == f"bcos_kernels {argv.split()[0]}: {NOT_THERE.format('einops')}\n"


@pytest.mark.slow
def test_a_package_that_a_command_imports_first_is_named():
    code = "import sys; sys.modules['numpy'] = None; from bcos_kernels.cli import main; sys.exit(main(['explain']))"
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.endswith(f"bcos_kernels explain: {NOT_THERE.format('numpy')}\n")


@pytest.mark.parametrize("step", ["configure", "main"])
def test_an_interrupt_ends_in_one_line(step, monkeypatch, capsys):
    """Also one that comes while the command imports what it needs."""
    monkeypatch.setattr(doctor, step, interrupted)
    assert status("doctor") == 130
    assert capsys.readouterr().err == "bcos_kernels doctor: interrupted\n"


@pytest.mark.parametrize("module", ["benchmarks.cudnn_plans.__main__", "benchmarks.triton_aot"])
def test_layers_that_no_benchmark_has(module, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)  # nothing is installed or compiled before
    with pytest.raises(SystemExit) as ended:
        import_module(module).main(["--layers", "no_such"])
    assert ended.value.code == 2
    assert "--layers 'no_such' matches no layer" in capsys.readouterr().err
