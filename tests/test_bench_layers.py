"""``pytest benchmarks/bench_layers.py`` times what its ``-k`` selects, under pytest-benchmark."""

import json

import pytest
from programs import ROOT, outcome, start


@pytest.mark.slow
def test_a_layer_is_timed_under_pytest_benchmark(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # in a worker of xdist nothing would be timed
    selected = ("-k", "training and vit_s/8-384-1000")
    quick = ("--benchmark-max-time=0.05", "--benchmark-min-rounds=2", "--benchmark-json=times.json")
    plugins = ("-p", "no:cacheprovider", "--rootdir", tmp_path)
    code, out, err = outcome(
        start("-m", "pytest", ROOT / "benchmarks/bench_layers.py", *selected, *quick, *plugins, cwd=tmp_path)
    )
    assert code == 0, out + err
    found = json.loads((tmp_path / "times.json").read_text())["benchmarks"]
    assert {timed["params"]["contender"] for timed in found} == {"plain", "reference", "ours"}
    assert {timed["group"] for timed in found} == {"vit_s/8-384-1000 training"}
    assert all(timed["stats"]["min"] > 0 for timed in found)
