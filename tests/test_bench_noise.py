"""Where a verdict on a time would be chance there is none, in ``report`` and in ``compare``, and the reason is said."""

import json
import re
import time

import pytest
from made_results import GPU, result, stored

from bcos_kernels.bench import compare, noise, report, run, tables
from bcos_kernels.bench.devices import Cpu

ROWS = "layer", "training"


def loaded(run: dict) -> dict:
    return run | {"load": {"before": 0.0, "during": 1.7}}


def under_a_low_roof(run: dict) -> dict:
    """As if the rates had been measured while the machine was half as fast."""
    rows = [
        row | {"floor": row["floor"] and {k: 1.5 * v for k, v in row["floor"].items()}} for row in run["rows"]
    ]  # fmt: skip
    return run | {"rows": rows}


DOUBTFUL = {
    "other programs kept 1.7 of 2 cores busy during the run": loaded(result()),
    "the rounds of the plain contender spread by": result(noise=(0.3, 0.5)),
    "plain layers are above 105% of the roof, which was measured too low": under_a_low_roof(result()),
    "FLOP/s were 50% of those of an earlier run": result() | {"earlier_rates": {"bytes/s": 2e10, "FLOP/s": 8e11}},
}


def verdicts(run: dict) -> dict[str, str]:
    return {line[0]: line[3] for line in tables.goals(run).rows if line[3]}


def test_a_quiet_run_has_verdicts():
    run = result() | {"load": {"before": 0.1, "during": 0.1}, "earlier_rates": result()["rates"]}
    assert noise.doubts(run) == [] and set(verdicts(run).values()) == {"met", "missed"}
    assert "No verdict" not in report.table(run)


@pytest.mark.parametrize("reason", DOUBTFUL)
def test_a_doubtful_run_has_none(reason):
    run = DOUBTFUL[reason]
    found = verdicts(run)
    assert found.pop("bytes saved for backward, ours ÷ plain: layers") in ("met", "missed"), "memory is no time"
    found.pop("bytes saved for backward, ours ÷ plain: models")
    assert found and set(found.values()) == {"chance"}
    text = report.table(run)
    assert "No verdict on times, they would be chance: " in text and reason in text
    assert reason in report.web_page([run], [], [{}])


@pytest.mark.parametrize("which", [0, 1])
def test_compare_gives_no_verdict_on_a_doubtful_run(which, tmp_path, capsys):
    a = result(0, noise=(0.02, 0.02))
    row = next(row for row in a["rows"] if len(row["contenders"]["ours"]["samples"]) > 60)
    b = result(1, {(row["workload"], row["measure"], "ours"): 1.5}, noise=(0.02, 0.02))
    files = [stored(tmp_path / "a.json", a), stored(tmp_path / "b.json", b)]
    assert compare.main(files) == 1 and "slower |" in capsys.readouterr().out
    files[which] = stored(tmp_path / "loaded.json", loaded((a, b)[which]))
    assert compare.main(files) == 2
    text = capsys.readouterr().out
    assert f"No verdict, it would be chance: {'AB'[which]}: other programs kept 1.7 of 2 cores busy" in text
    assert "slower |" not in text and "chance |" in text


def test_programs_on_the_cpu_do_not_spoil_a_gpus_times():
    assert noise.doubts(loaded(result(machine=GPU))) == []


def test_a_run_stores_what_else_the_machine_did(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Cpu, "copied", 1 << 16)
    monkeypatch.setattr(Cpu, "product", 64)
    monkeypatch.setattr(noise.Watch, "others", lambda self: 2.5)
    monkeypatch.setattr(noise.os, "cpu_count", lambda: 4)
    out = tmp_path / "tiny.json"
    options = ("--seconds=0", "--device=cpu", "--models=vit_s", "--layers=/8-384-1000", "--measures=forward")
    assert run.main([*options, f"--out={out}"]) == 0
    stored_run = json.loads(out.read_text())
    assert stored_run["load"] == {"before": 2.5, "during": 2.5}
    assert "other programs kept 2.5 of 4 cores busy" in re.sub(r"of \d+ cores", "of 4 cores", capsys.readouterr().out)


def test_own_work_is_not_others():
    watch = noise.Watch()
    if watch.start is None:
        pytest.skip("the system does not tell")
    start = noise.Watch._now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    busy, own, clock = (b - a for a, b in zip(start, noise.Watch._now(), strict=True))
    assert own >= 0.29 and watch.others() == pytest.approx(max(0.0, busy - own) / clock, abs=0.3)
