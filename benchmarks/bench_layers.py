"""``pytest benchmarks/bench_layers.py``: each layer, measure and contender under pytest-benchmark.

For looking at one layer (``-k "vit_s and ours"``) or comparing two checkouts (``--benchmark-autosave``,
``--benchmark-compare``); ratios come from ``python -m bcos_kernels bench``, which interleaves the contenders.
"""

from __future__ import annotations

import pytest
import torch

from bcos_kernels.cli.bench import layers
from bcos_kernels.cli.bench.contenders import build
from bcos_kernels.cli.bench.workloads import workloads

pytest.importorskip("pytest_benchmark")

CONTENDERS = ("plain", "reference", "ours")
LAYERS = {layer.name: layer for layer in workloads()}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("measure", layers.MEASURES)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_layer(benchmark, name: str, measure: str, contender: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]
    contenders = build(layer.reference(), layer.plain(), {"plain", contender})
    contest = layers.contest(layer, contenders, measure)
    _, refused = contest.admitted()
    assert not refused
    benchmark.group = f"{name} {measure}"
    benchmark(contest.call(contender))
