"""A run of ``bench`` from end to end: its file, interruptions, limits of time, curves, and bad input."""

import argparse
import json
import re
import shlex
import sys
from functools import partial

import made_results
import pytest
import torch

from bcos_kernels.cli import main
from bcos_kernels.cli.bench import contenders as contending
from bcos_kernels.cli.bench import layers as measured
from bcos_kernels.cli.bench import models, run, show, stored, tasks, workloads
from bcos_kernels.cli.bench.devices import Cpu, DeviceLost
from bcos_kernels.cli.bench.results import read
from bcos_kernels.cli.bench.settings import Settings, configure

FAST = ("--seconds", "0", "--device", "cpu")
LAYER = ("--models", "vit_s", "--layers", "/8-384-1000", "--no-models")
LINEAR = (*LAYER, "--contenders", "plain", "reference", "ours")


def bench(options) -> int:
    return main(["bench", *options])


@pytest.fixture(autouse=True)
def _small_rates(monkeypatch):
    monkeypatch.setattr(Cpu, "copied", 1 << 16)
    monkeypatch.setattr(Cpu, "product", 64)
    monkeypatch.setattr(run, "BEFORE", 0.0)


OWN = """
from torch import nn
from bcos.modules import BcosConv2d, BcosLinear
def make(classes=5):
    features = BcosConv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8, affine=False), BcosConv2d(8, 8, 3, stride=2)
    return nn.Sequential(*features, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), BcosLinear(8, classes))
def plain():
    return nn.Linear(4, 4)
def text():
    return "no module"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module ``mine`` that can be imported, and the options that name it."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return ["--module", "mine:make", "--input", "3,6,9,9", "--factory-args", '{"classes": 4}']


def test_a_run_is_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(run.Watch, "others", lambda self: 1000.0)
    out = tmp_path / "results of today" / "tiny.json"
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 0
    result = read(out)
    assert result["complete"] and result["not_measured"] == [] and result["rates"]["bytes/s"] > 0
    assert result["command"].startswith("python -m bcos_kernels bench --seconds 0") and result["versions"]["torch"]
    assert result["command"].endswith(" --out tiny.json"), "the folders of a machine are nobody's business"
    assert [row["measure"] for row in result["rows"]] == list(measured.MEASURES)
    for row in result["rows"]:
        assert row["workload"] == "vit_s/8-384-1000" and row["batch"] == 8 and row["floor"]["seconds"] > 0
        assert len({len(c["samples"]) for c in row["contenders"].values()}) == 1
        assert len(row["contenders"]["ours"]["samples"]) >= tasks.LEAST
        assert row["contenders"]["plain"]["errors"] is None and max(row["contenders"]["ours"]["errors"]) < 1e-5
        assert row["served"] == {"ours": {"cpu": 1}} and row["refused"] == {}
        assert row["contenders"]["ours"]["peak"] > 0
        assert (row["contenders"]["ours"]["saved"] is None) == (row["measure"] == "forward")
    assert result["load"] == {"before": 1000.0, "during": 1000.0}
    printed = capsys.readouterr().out
    assert printed.count("vit_s/8-384-1000") == 3
    assert "No verdict on times, they are too noisy: other programs kept 1000.0 of" in " ".join(printed.split())
    sentence = printed[printed.index("No verdict") :].splitlines()
    assert len(sentence) > 1 and max(map(len, sentence)) <= 80
    assert max(len(line) for line in out.read_text().splitlines()) > 50, "samples stand on one line"
    (told,) = re.findall("^its tables: python -m bcos_kernels (.+)$", printed, re.MULTILINE)
    assert main(shlex.split(told)) == 0 and "vit_s/8-384-1000" in capsys.readouterr().out


@pytest.mark.slow
def test_a_module_of_the_users(own, tmp_path):
    """Its dropout is stilled: without it no two runs are equal."""
    out = tmp_path / "mine.json"
    assert bench([*FAST, *own, "--out", str(out)]) == 0
    result = read(out)
    assert [row["measure"] for row in result["rows"]] == [m for m in models.MEASURES if m not in models.EXPLAINED]
    for row in result["rows"]:
        assert row["scope"] == "model" and row["workload"] == "mine:make" and row["batch"] == 3 and row["image"] == 9
        assert set(row["contenders"]) == {"reference", "ours"} and row["served"]["ours"] == {"cpu": 3}


def test_a_folded_model_takes_part_where_it_is_named(own, tmp_path):
    """In measures of evaluation."""
    out = tmp_path / "folded.json"
    options = ["--measures", "inference", "explanation", "training", "--contenders", "ours", "ours folded"]
    assert bench([*FAST, *own, *options, "--out", str(out)]) == 0
    for row in read(out)["rows"]:
        evaluated = row["measure"] != "training"
        assert ("ours folded" in row["contenders"]) == evaluated == ("ours folded" not in row["refused"])


def test_backends_are_forced_where_they_are_asked_for(tmp_path):
    out = tmp_path / "forced.json"
    options = ["--measures", "forward", "--contenders", "plain", "ours/cpu", "ours/triton"]
    assert bench([*FAST, *LAYER, *options, "--out", str(out)]) == 0
    (row,) = read(out)["rows"]
    assert set(row["contenders"]) == {"plain", "ours/cpu"} and "ours/triton" in row["refused"]


@pytest.mark.slow
def test_the_compiled_reference_takes_part(tmp_path, monkeypatch):
    """By default in the training of a sample of layers, of which this one is part."""
    # without Inductor, which would take half a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    out = tmp_path / "compiled.json"
    assert bench([*FAST, *LAYER, "--measures", "training", "--out", str(out)]) == 0
    (row,) = read(out)["rows"]
    assert set(row["contenders"]) == {"plain", "reference", "compiled", "ours"} and row["refused"] == {}


@pytest.fixture
def interrupted(monkeypatch):
    """``interrupted(n, error)`` raises the error in the place of the n-th row."""

    def arrange(count: int, error: BaseException) -> None:
        measure, left = tasks.measured, [count]

        def measured_or_not(*args):
            left[0] -= 1
            if left[0] < 0:
                raise error
            return measure(*args)

        monkeypatch.setattr(tasks, "measured", measured_or_not)

    return arrange


def test_an_interruption_keeps_what_was_measured_and_what_was_complete(interrupted, tmp_path):
    out = tmp_path / "linear.json"
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 0
    complete = out.read_text()
    interrupted(2, KeyboardInterrupt())
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 130
    assert out.read_text() == complete
    partial = read(tmp_path / "linear-partial.json")
    assert len(partial["rows"]) == 2 and not partial["complete"] and partial["not_measured"] == ["vit_s/8-384-1000"]


def test_a_killed_run_names_nothing_that_it_has_measured(interrupted, tmp_path):
    out = tmp_path / "linear.json"
    interrupted(2, SystemExit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        bench([*FAST, *LINEAR, "--out", str(out)])
    found = read(out)
    assert len(found["rows"]) == 2 and found["not_measured"] == ["vit_s/8-384-1000"]


def test_an_unfinished_run_is_resumed(interrupted, tmp_path, monkeypatch, capsys):
    out = tmp_path / "linear.json"
    measure = tasks.measured
    interrupted(2, KeyboardInterrupt())
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 130
    monkeypatch.setattr(tasks, "measured", measure)
    first = read(out)
    assert first["not_measured"] and len(first["rows"]) == 2
    assert bench([*FAST, *LINEAR, "--resume", str(out)]) == 0
    whole = read(out)
    assert whole["complete"] and not whole["not_measured"] and whole["started"] == first["started"]
    rows = [(row["workload"], row["measure"]) for row in whole["rows"]]
    assert len(rows) == len(set(rows)) > 2 and [resumed["commit"] for resumed in whole["resumed"]]
    assert bench([*FAST, *LINEAR, "--resume", str(out)]) == 2
    assert "the result of an unfinished run is needed" in capsys.readouterr().err
    out.write_text(json.dumps(first))
    assert bench([*FAST, *LINEAR, "--seconds", "0.02", "--resume", str(out)]) == 2
    assert "its settings differ in seconds" in capsys.readouterr().err


def test_a_lost_device_keeps_what_was_measured(interrupted, tmp_path, capsys):
    out = tmp_path / "linear.json"
    interrupted(1, DeviceLost("CUDA error: unspecified launch failure"))
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 2
    assert len(read(out)["rows"]) == 1
    assert "the device is lost, earlier rows are kept: CUDA error" in capsys.readouterr().err


def test_a_complete_run_takes_the_place_of_an_earlier_one(tmp_path):
    out = tmp_path / "linear.json"
    out.write_text(json.dumps({"complete": True, "rows": []}))
    assert bench([*FAST, *LINEAR, "--measures", "forward", "--out", str(out)]) == 0
    assert len(read(out)["rows"]) == 1 and not (tmp_path / "linear-partial.json").exists()


def test_a_failing_layer_is_reported_and_the_others_are_timed(interrupted, tmp_path):
    out = tmp_path / "linear.json"
    interrupted(1, torch.OutOfMemoryError("no room"))
    assert bench([*FAST, *LINEAR, "--out", str(out)]) == 1
    assert [row["refused"] for row in read(out)["rows"]] == [
        {},
        *[{"every contender": "OutOfMemoryError: no room"}] * 2,
    ]


def test_time_that_is_used_up_is_said(tmp_path):
    out = tmp_path / "limited.json"
    options = ["--models", "vit_s", "--no-models", "--limit", "1e-9", "--out", str(out)]
    assert bench([*FAST, *options]) == 0
    result = json.loads(out.read_text())
    assert result["rows"] == [] and not result["complete"] and len(result["not_measured"]) == 6


@pytest.mark.slow
def test_curves_end_where_a_round_would_take_too_long(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "CURVES", {"vit_s/8-384-1000": "forward"})
    monkeypatch.setattr(tasks, "BATCHES", (1, 2))
    monkeypatch.setattr(tasks, "IMAGES", (64, 128))
    out = tmp_path / "curves.json"
    options = [*FAST, "--no-models", "--no-layers", "--scaling", "--out", str(out)]
    assert bench(options) == 0
    found = [(row["scaling"], row["batch"], row["image"], row["workload"]) for row in read(out)["rows"]]
    name = "vit_s/8-384-1000"
    assert found == [("batch", 1, 224, name), ("batch", 2, 224, name), ("image", 8, 64, name), ("image", 8, 128, name)]
    monkeypatch.setattr(tasks, "LONGEST_ROUND", 0.0)
    assert bench(options) == 0
    result = read(out)
    assert len(result["rows"]) == 2 and result["complete"]
    assert result["not_measured"][0].startswith("vit_s/8-384-1000, forward, batch 2: a round would take")


def test_where_runs_are_stored(tmp_path, monkeypatch):
    def parsed(*options):
        parser = argparse.ArgumentParser()
        configure(parser)
        return parser.parse_args(options, argparse.Namespace(argv=["bench", *options]))

    def where(*options):
        return run.Run(settings, None, [], parsed(*options)).path

    settings = Settings(parsed("--device", "cpu"))
    monkeypatch.setattr(Cpu, "describe", lambda self: {"device": "Some CPU (R) 3"})
    monkeypatch.setattr(stored, "ROOT", tmp_path)
    assert str(where("--scaling")) == "bcos_kernels_bench/some-cpu-r-3.json"
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    assert where("--scaling") == where("--scaling", "--limit", "3") == folder / "some-cpu-r-3.json"
    for narrower in ([], ["--no-models"], ["--layers", "x"], ["--dtype", "bf16"], ["--batch", "2"]):
        assert where(*narrower) == folder / "some-cpu-r-3-selection.json"
        assert where("--scaling", *narrower or ["--no-layers"]) == folder / "some-cpu-r-3-selection.json"
    assert where("--quick") == folder / "some-cpu-r-3-quick.json"


BAD = {
    "--models resnet5": "--models resnet5: allowed are resnet50, vit_s",
    "--measures backward": "--measures backward: allowed are forward, explanation, training, inference",
    "--contenders ours/quick": "--contenders ours/quick: allowed are plain, reference, compiled",
    "--layers (": "--layers '(': no regular expression",
    "--layers nothing --models vit_s": "--layers 'nothing' matches no layer of vit_s",
    "--limit -1": "--limit -1.0: must be above 0",
    "--device tpu": "--device tpu: allowed are cpu, cuda and cuda:<index>",
    "--no-layers --no-models": "nothing to measure is left",
    "--module mine:make": "--module and --input belong together",
    "--module nowhere:make --input 2,6,9,9": "--module nowhere:make: No module named 'nowhere'",
    "--module mine:made --input 2,6,9,9": "--module mine:made: mine has no made",
    "--module mine:text --input 2,6,9,9": "--module mine:text returned str, not a torch.nn.Module",
    "--module mine:plain --input 2,4": "--module mine:plain: it has no B-cos layers",
    "--module mine:make --input 2,5,9,9": "--input 2,5,9,9: mine:make cannot take it",
    "--module mine:make --input 2,6,9,9 --scaling": "--module is measured alone",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_input_is_refused_in_one_line(options, own, capsys):
    assert bench([*FAST, *options.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("bcos_kernels bench: " + BAD[options]) and err.count("\n") == 1 and out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert bench(["--device", "cuda"]) == 2
    assert "torch.cuda.is_available() is False" in capsys.readouterr().err


@pytest.mark.slow
def test_list_explains_names_and_offers_what_can_run(capsys):
    assert bench(["--list", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "resnet50/224x224-6-k7s2-64  also in resnext50, densenet121" in text
    for name in (*workloads.MODELS, "compiled", "ours/cpu", "MODEL/HxW-IN-kKsS-OUT"):
        assert name in text
    for measure in (*measured.MEASURES, *models.MEASURES):
        assert f"  {measure}: " in text
    assert "ours/cuda" not in text and "ours/triton" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("compiler", [True, False])
def test_contenders_that_can_run(compiler, monkeypatch):
    monkeypatch.setattr(contending.shutil, "which", lambda name: "/usr/bin/g++" if compiler else None)
    compiled = ("compiled", "compiled plain", "compiled ours") if compiler else ()
    ours = ("ours", "ours pairs", "ours folded", "ours/cpu")
    assert contending.possible("cpu") == ("plain", "reference", *compiled, *ours)


def test_a_line_fits_80_columns():
    row = made_results.result()["rows"][0] | {
        "workload": "resnext50/14x14-1024-g32k3s2-1024",
        "measure": "class explanations",
    }
    for scaling in (None, "image"):
        shown = show.line(row | {"scaling": scaling, "refused": {"ours/cpu": "a reason " * 20}})
        assert max(map(len, shown.splitlines())) <= 80 and row["workload"] in shown
    assert max(map(len, show.HEAD.splitlines())) <= 80


def test_large_ratios_stay_apart(monkeypatch):
    monkeypatch.setattr(show, "ratio", lambda row, contender, base: {"ours": 0.72, "reference": 611.224}.get(contender))
    row = made_results.result()["rows"][0] | {"scaling": None, "refused": {}}
    assert show.line(row).split()[-3:] == ["0.72", "611", "–"]


def test_a_large_model_has_half_the_batch_unless_one_is_chosen():
    parser = argparse.ArgumentParser()
    configure(parser)
    usual, chosen = (Settings(parser.parse_args(["--device", "cpu", *more])) for more in ([], ["--batch", "6"]))
    assert [usual.batch("models", name) for name in ("resnet50", "vgg11")] == [4, 2]
    assert usual.batch("layers", "vgg11") == 8 and chosen.batch("models", "vgg11") == 6
