"""``bench compare``: no alarm between runs of the same code, planted changes found, unlike runs refused."""

import math
import time
from functools import cache

import pytest
import torch
from made_results import CPU, GPU, contender, result, stored

import bcos_kernels as bk
from bcos_kernels.cli import main, measure
from bcos_kernels.cli.bench import compare


def run_compare(*arguments) -> int:
    return main(["bench", "compare", *map(str, arguments)])


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


@pytest.mark.parametrize("options", [{}, {"between": 0.03}, {"wander": 0.2}], ids=str)
def test_runs_of_the_same_code_are_not_flagged(options):
    """306 rows, noise of 5 to 15 %, outliers, drifts, and shifts between the runs: one alarm in 2 pairs at most."""
    alarms = [changed(made(2 * seed, **options), made(2 * seed + 1, **options)) for seed in range(2)]
    assert sum(map(bool, alarms)) <= 1, alarms


@pytest.mark.parametrize("noise, rounds", [((0.03, 0.05), 16), ((0.05, 0.1), 60)])
def test_a_change_of_20_percent_in_one_kernel_is_found(noise, rounds):
    """In one row of 306, slower and faster; the noisier the rounds, the more of them it takes."""
    a, b = made(0, noise=noise), made(1, noise=noise)
    layers = [r for r in b["rows"] if r["scope"] == "layer" and len(r["contenders"]["ours"]["samples"]) >= rounds]
    for row, factor in zip(layers[:: len(layers) // 4], (1.2, 1 / 1.2, 1.2, 1 / 1.2), strict=False):
        found = {c.row: c.log for c in changed(a, planted(b, row, factor))}
        assert compare.key(row) in found and (found.pop(compare.key(row)) > 0) == (factor > 1)
        assert len(found) <= 1


def test_how_runs_differ_is_learned_from_what_is_not_ours():
    """``between`` moves numerator and denominator of both runs: twice that for a ratio of ratios."""
    pairs = compare.paired(*(made(seed, between=0.03, noise=(0.02, 0.02)) for seed in (0, 1)), "plain")[0]
    controls = [change for change in compare.changes(pairs) if not change.ours]
    assert compare.spread_of_runs(controls, 0.05) == pytest.approx(0.06, rel=0.25)
    assert compare.spread_of_runs(controls[:9], 0.05) == pytest.approx(math.log(1.05) / 2)


def test_smallest_change_of_interest():
    a = made(0, noise=(0.02, 0.02))
    row = next(r for r in a["rows"] if len(r["contenders"]["ours"]["samples"]) == 100)
    b = result(1, {(row["workload"], row["measure"], "ours"): 1.12}, noise=(0.02, 0.02))
    assert [c.row for c in changed(a, b, 0.08)] == [compare.key(row)]
    assert changed(a, b, 0.15) == []


# ------------------------------------------------------------------------------------------------ a real one


def cpu_time(call):
    start = time.thread_time()
    call()
    return time.thread_time() - start


def measured(folder, calls):
    with torch.no_grad():
        times = measure.interleave(calls, seconds=1.0, least=60, most=120, clock=cpu_time)
    files = {}
    for name in ("ours", "more"):
        row = {"scope": "layer", "workload": "vit_s/2048-192-192", "model": "vit_s", "measure": "forward", "batch": 8}
        row["contenders"] = {"plain": contender(times["plain"]), "ours": contender(times[name])}
        files[name] = stored(folder / f"{name}.json", made() | {"rows": [row]})
    return files


def test_a_layer_that_does_20_percent_more_is_found(tmp_path, capsys):
    """In one loop, and in CPU time of one thread. Other programs share its caches: it is repeated for a verdict."""
    torch.manual_seed(0)
    x, layer, plain = torch.randn(2048, 192), bk.BcosLinear(192, 192), torch.nn.Linear(192, 192)
    calls = {"plain": lambda: plain(x), "ours": lambda: layer(x), "more": lambda: (layer(x), layer(x[:410]))}
    for _ in range(3):
        files = measured(tmp_path, calls)
        if (found := run_compare(files["ours"], files["more"])) != 2:
            break
    assert found == 1
    assert "| vit_s/2048-192-192, forward, batch 8 | ours |" in capsys.readouterr().out
    assert run_compare(files["more"], files["ours"]) == 0 and "faster |" in capsys.readouterr().out
    assert run_compare(files["ours"], files["ours"]) == 0


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Files of two runs, and the rows that are slower and faster in the second one."""
    a, folder = made(0, noise=(0.02, 0.02)), tmp_path_factory.mktemp("runs")
    rows = [r for r in a["rows"] if len(r["contenders"]["ours"]["samples"]) > 60]
    slower, faster = ((r["workload"], r["measure"], "ours") for r in (rows[0], rows[9]))
    b = result(1, {slower: 1.3, faster: 0.7}, noise=(0.02, 0.02))
    for row in b["rows"]:  # the whole machine is slower
        for one in row["contenders"].values():
            one["samples"] = [t * 1.5 for t in one["samples"]]
    b |= {"rows": b["rows"][:-2], "commit": "0123456789abcdef"}
    return stored(folder / "a.json", a), stored(folder / "b.json", b), slower, faster


def test_what_changed_is_listed_and_a_slower_one_fails(runs, tmp_path, capsys):
    *files, slower, faster = runs
    page = tmp_path / "changes.md"
    assert run_compare(*files, "--markdown", page) == 1
    text = capsys.readouterr().out
    assert page.read_text() == text
    lines = [line for line in text.splitlines() if "| ours |" in line]
    assert len(lines) == 2 and "slower" in lines[1] and "faster" in lines[0]
    assert slower[0] in lines[1] and faster[0] in lines[0]
    assert "1 slower and 1 faster by 5% or more, of 314 comparisons of ours" in text
    assert "at commit 431f4d43a6" in text and "at commit 0123456789" in text
    assert text.startswith("Not compared: resnet50, training, batch 8, image 256: only in A; ")
    assert run_compare(*files, "--least", "40%") == 0


def test_anchors(runs, capsys):
    assert run_compare(*runs[:2], "--anchor", "reference") == 1
    assert "B, ÷ reference" in (text := capsys.readouterr().out) and "1 slower and 1 faster" in text
    assert run_compare(*runs[:2], "--anchor", "none", "--least", "30") == 1
    assert " slower and 0 faster by 30% or more" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"machine": GPU}, "different devices: AMD EPYC, 2 threads in A, NVIDIA H200 in B"),
        ({"machine": CPU | {"threads": 8}}, "different devices: AMD EPYC, 2 threads in A, AMD EPYC, 8 threads in B"),
        (
            {"settings": {"dtype": "bf16", "memory_format": "channels_last"}},
            "different dtypes: fp32 in A, bf16 in B",
        ),
        ({"schema": 1}, "has schema 1, and schema 2 is needed: repeat the run with python -m bcos_kernels bench"),
        (
            {"rows": [row | {"batch": 64} for row in made()["rows"]]},
            "have nothing of ours in common: resnet50/56x56-64-k1s1-64, forward, batch 8: only in A",
        ),
    ],
)
def test_unlike_runs_are_refused(change, message, tmp_path, capsys):
    files = stored(tmp_path / "a.json", made()), stored(tmp_path / "b.json", made() | change)
    assert run_compare(*files) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_contender_without_the_anchor_is_named(tmp_path, capsys):
    rows = made()["rows"]
    without = [row | {"contenders": {k: v for k, v in row["contenders"].items() if k != "plain"}} for row in rows[:2]]
    file = stored(tmp_path / "a.json", made() | {"rows": [*without, *rows[2:]]})
    assert run_compare(file, file) == 0
    assert "forward, batch 8, ours: no plain in A, no plain in B" in capsys.readouterr().out


def test_one_round_shows_no_noise(tmp_path, capsys):
    row = made()["rows"][0]
    once = {k: c | {"samples": c["samples"][:1]} for k, c in row["contenders"].items()}
    file = stored(tmp_path / "a.json", made() | {"rows": [row | {"contenders": once}]})
    assert run_compare(file, file) == 2 and "one round for each contender shows no noise" in capsys.readouterr().err


@pytest.mark.parametrize("least", ["0", "-5%", "much"])
def test_least_is_a_percentage(least, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_compare("a", "b", f"--least={least}")
    assert f"{least!r}: a percentage above 0 is needed, as in 5%" in capsys.readouterr().err
