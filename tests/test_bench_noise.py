"""Times that are too noisy get no verdict, in ``report`` and in ``compare``, and the reason is named."""

import time

import pytest
from made_results import GPU, result, stored

from bcos_kernels.cli import main
from bcos_kernels.cli.bench import noise, report, tables


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
    "plain layers are faster than 105% of the roof, which was measured too low": under_a_low_roof(result()),
}


def verdicts(run: dict) -> dict[str, str]:
    return {line[0]: line[3] for line in tables.goals(run).rows if line[3]}


def test_a_quiet_run_has_verdicts():
    run = result() | {"load": {"before": 0.1, "during": 0.1}}
    assert noise.doubts(run) == [] and set(verdicts(run).values()) == {"met", "missed"}
    assert "No verdict" not in report.table(run)


@pytest.mark.parametrize("reason", DOUBTFUL)
def test_a_doubtful_run_has_none(reason):
    run = DOUBTFUL[reason]
    found = verdicts(run)
    assert found.pop("bytes saved for backward, ours ÷ plain: layers") in ("met", "missed"), "memory is no time"
    found.pop("bytes saved for backward, ours ÷ plain: models")
    assert found and set(found.values()) == {"no verdict"}
    text = report.table(run)
    assert "No verdict on times, they are too noisy: " in text and reason in text


@pytest.mark.parametrize("which", [0, 1])
def test_compare_gives_no_verdict_on_a_doubtful_run(which, tmp_path, capsys):
    a = result(0, noise=(0.02, 0.02))
    row = next(row for row in a["rows"] if len(row["contenders"]["ours"]["samples"]) > 60)
    b = result(1, {(row["workload"], row["measure"], "ours"): 1.5}, noise=(0.02, 0.02))
    files = [stored(tmp_path / "a.json", a), stored(tmp_path / "b.json", b)]
    assert main(["bench", "compare", *files]) == 1 and "slower |" in capsys.readouterr().out
    files[which] = stored(tmp_path / "loaded.json", loaded((a, b)[which]))
    assert main(["bench", "compare", *files]) == 2
    text = capsys.readouterr().out
    assert f"No verdict, the times are too noisy: {'AB'[which]}: other programs kept 1.7 of 2 cores busy" in text
    assert "slower |" not in text and "no verdict |" in text


def test_programs_on_the_cpu_do_not_spoil_a_gpus_times():
    assert noise.doubts(loaded(result(machine=GPU))) == []


def test_own_work_is_not_others():
    watch = noise.Watch()
    if watch.start is None:
        pytest.skip("the system does not tell")
    start = noise.Watch._now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    busy, own, clock = (b - a for a, b in zip(start, noise.Watch._now(), strict=True))
    assert own >= 0.28 and watch.others() == pytest.approx(max(0.0, busy - own) / clock, abs=0.3)
