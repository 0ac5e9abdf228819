"""``bench compare``: no alarm between runs of the same code, planted changes found, unlike runs refused."""

import math
import time
from functools import cache

import pytest
import torch
from made_results import CPU, GPU, contender, result, stored

import bcos_kernels as bk
from bcos_kernels.bench import compare, timing


def changed(a, b, least=0.05):
    """The changes of ours beyond noise from run ``a`` to run ``b``."""
    found = compare.changes(compare.paired(a, b, "plain")[0])
    ours = [change for change in found if change.ours]
    spread = compare.spread_of_runs([change for change in found if not change.ours], least)
    return compare.beyond_noise(ours, spread, least)


# ------------------------------------------------------------------------------------------------ statistics


made = cache(result)


def planted(run, row, factor):
    """The run with another time of ours in one row."""
    ours = row["contenders"]["ours"]
    slower = row | {"contenders": row["contenders"] | {"ours": contender([t * factor for t in ours["samples"]])}}
    return run | {"rows": [slower if r is row else r for r in run["rows"]]}


@pytest.mark.parametrize("options", [{}, {"between": 0.01}, {"between": 0.03}, {"wander": 0.2}], ids=str)
def test_runs_of_the_same_code_are_not_flagged(options):
    """316 rows, noise of 5 to 15 %, outliers, drifts, and shifts between the runs: one alarm in 4 pairs at most."""
    alarms = [changed(made(2 * seed, **options), made(2 * seed + 1, **options)) for seed in range(4)]
    assert sum(map(bool, alarms)) <= 1, alarms


@pytest.mark.parametrize("noise, rounds", [((0.03, 0.05), 16), ((0.05, 0.05), 30), ((0.05, 0.15), 90)])
def test_a_change_of_20_percent_in_one_kernel_is_found(noise, rounds):
    """One of 316 rows; the noisier, the more rounds it takes."""
    others = 0
    for seed in range(4):
        a, b = made(2 * seed, noise=noise), made(2 * seed + 1, noise=noise)
        layers = [r for r in b["rows"] if r["scope"] == "layer" and len(r["contenders"]["ours"]["samples"]) >= rounds]
        row, factor = layers[7 * seed % len(layers)], (1.2, 1 / 1.2)[seed % 2]
        found = {c.row: c.log for c in changed(a, planted(b, row, factor))}
        assert compare.key(row) in found and (found.pop(compare.key(row)) > 0) == (factor > 1)
        others += len(found)
    assert others <= 1


def test_how_runs_differ_is_learned_from_what_is_not_ours():
    """``between`` moves numerator and denominator of both runs: twice that for a ratio of ratios."""
    for between in (0.01, 0.03):
        pairs = compare.paired(*(made(seed, between=between, noise=(0.02, 0.02)) for seed in (0, 1)), "plain")[0]
        controls = [change for change in compare.changes(pairs) if not change.ours]
        assert compare.spread_of_runs(controls, 0.05) == pytest.approx(2 * between, rel=0.25)
    assert compare.spread_of_runs(controls[:9], 0.05) == pytest.approx(math.log(1.05) / 2)


@pytest.mark.parametrize("freedom, t, p", [(6, 5.959, 1e-3), (10, 4.587, 1e-3), (10, 6.211, 1e-4), (30, 3.646, 1e-3)])
def test_p_values_are_student_s(freedom, t, p):
    change = compare.Change((), "ours", (1, 1), 0.03 * t, 0.03, freedom)
    assert change.p(0.0) == pytest.approx(p, rel=0.1)
    assert change.visible(change.p(0.04), 0.04) == pytest.approx(change.log)
    assert change.p(0.04) > change.p(0.0)


def test_smallest_change_of_interest():
    a = result(0, noise=(0.01, 0.01))
    row = next(r for r in a["rows"] if len(r["contenders"]["ours"]["samples"]) == 100)
    b = result(1, {(row["workload"], row["measure"], "ours"): 1.12}, noise=(0.01, 0.01))
    assert [c.row for c in changed(a, b, 0.10)] == [compare.key(row)]
    assert changed(a, b, 0.15) == []


# ------------------------------------------------------------------------------------------------ a real one


def cpu_time(call):
    start = time.thread_time()
    call()
    return time.thread_time() - start


def test_a_layer_that_does_20_percent_more_is_found(tmp_path, capsys):
    """In one loop, and in CPU time of one thread: what else the machine does is no part of it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, layer, plain = torch.randn(2048, 192), bk.BcosLinear(192, 192), torch.nn.Linear(192, 192)
        calls = {
            "plain": lambda: plain(x),
            "ours": lambda: layer(x),
            "more": lambda: (layer(x), layer(x[:410])),
        }
        with torch.no_grad():
            times = timing.interleave(calls, seconds=2.0, least=60, most=200, clock=cpu_time)
    finally:
        torch.set_num_threads(threads)
    files = {}
    for name in ("ours", "more"):
        row = {"scope": "layer", "workload": "vit_s/2048-192-192", "model": "vit_s", "measure": "forward", "batch": 8}
        row["contenders"] = {"plain": contender(times["plain"]), "ours": contender(times[name])}
        files[name] = stored(tmp_path / f"{name}.json", made() | {"rows": [row]})
    assert compare.main([files["ours"], files["more"]]) == 1
    assert "| vit_s/2048-192-192, forward, batch 8 | ours |" in capsys.readouterr().out
    assert compare.main([files["more"], files["ours"]]) == 0 and "faster |" in capsys.readouterr().out
    assert compare.main([files["ours"], files["ours"]]) == 0


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def runs():
    a = result(0, noise=(0.02, 0.02))
    rows = [r for r in a["rows"] if len(r["contenders"]["ours"]["samples"]) > 60]
    slower, faster = ((r["workload"], r["measure"], "ours") for r in (rows[0], rows[9]))
    return a, result(1, {slower: 1.3, faster: 0.7}, noise=(0.02, 0.02)), slower, faster


def test_command_names_what_changed(runs, tmp_path, capsys):
    a, b, slower, faster = runs
    b = b | {"rows": b["rows"][:-2], "commit": "0123456789abcdef"}
    files = stored(tmp_path / "a.json", a), stored(tmp_path / "b.json", b)
    page = tmp_path / "changes.md"
    assert compare.main([*files, "--markdown", str(page)]) == 1
    text = capsys.readouterr().out
    assert page.read_text() == text
    lines = [line for line in text.splitlines() if "| ours |" in line]
    assert len(lines) == 2 and "slower" in lines[1] and "faster" in lines[0]
    assert slower[0] in lines[1] and faster[0] in lines[0]
    assert "1 slower and 1 faster by 5% or more, of 314 comparisons of ours" in text
    assert "at commit 431f4d43a6" in text and "at commit 0123456789" in text
    assert text.startswith("Not compared: resnet50, training, batch 8, image 256: only in A; ")
    assert compare.main([*files, "--least", "40%"]) == 0


def test_anchors(runs, tmp_path, capsys):
    a, b, *_ = runs
    for row in b["rows"]:
        for one in row["contenders"].values():
            one["samples"] = [t * 1.5 for t in one["samples"]]
    files = stored(tmp_path / "a.json", a), stored(tmp_path / "b.json", b)
    for anchor in ("plain", "reference"):
        assert compare.main([*files, "--anchor", anchor]) == 1
        assert f"B, ÷ {anchor}" in (text := capsys.readouterr().out) and "1 slower and 1 faster" in text
    assert compare.main([*files, "--anchor", "none", "--least", "30"]) == 1
    assert " slower and 0 faster by 30% or more" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"machine": GPU}, "different devices: AMD EPYC, 2 threads in A, NVIDIA H200 in B"),
        ({"machine": CPU | {"threads": 8}}, "different devices: AMD EPYC, 2 threads in A, AMD EPYC, 8 threads in B"),
        ({"settings": {"dtype": "bfloat16", "memory_format": "channels_last"}}, "different dtypes: float32 in A, bf"),
        ({"schema": 1}, "has schema 1, and schema 2 is needed: repeat the run with python -m bcos_kernels bench"),
    ],
)
def test_unlike_runs_are_refused(change, message, tmp_path, capsys):
    files = stored(tmp_path / "a.json", result()), stored(tmp_path / "b.json", result() | change)
    assert compare.main(list(files)) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_other_batches_are_refused_and_other_rows_named(tmp_path, capsys):
    a = result()
    resized = [row | {"batch": 64} for row in a["rows"]]
    files = stored(tmp_path / "a.json", a), stored(tmp_path / "b.json", a | {"rows": resized})
    assert compare.main(list(files)) == 2
    assert "has batch 8, image 224 in A and batch 64, image 224 in B" in capsys.readouterr().err
    renamed = [row | {"workload": "other/" + row["workload"]} for row in a["rows"]]
    files = files[0], stored(tmp_path / "c.json", a | {"rows": renamed})
    assert compare.main(list(files)) == 2
    assert "have nothing of ours in common: resnet50/56x56-64-k1s1-64, forward" in capsys.readouterr().err


def test_a_contender_without_the_anchor_is_named(tmp_path, capsys):
    a = result()
    for row in a["rows"][:2]:
        row["contenders"] = {k: v for k, v in row["contenders"].items() if k != "plain"}
    file = stored(tmp_path / "a.json", a)
    assert compare.main([file, file]) == 0
    assert "forward, batch 8, ours: no plain in A, no plain in B" in capsys.readouterr().out


@pytest.mark.parametrize("least", ["0", "-5%", "much"])
def test_least_is_a_percentage(least, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main(["a", "b", f"--least={least}"])
    assert f"{least!r}: a percentage above 0 is needed, as in 5%" in capsys.readouterr().err
