"""``pytest benchmarks/bench_layers.py``: each layer, measure and contender under pytest-benchmark.

For looking at one layer (``-k "vit_s and ours"``) or comparing two checkouts (``--benchmark-autosave``,
``--benchmark-compare``); ratios come from ``benchmarks.cpu_layers``, which interleaves them.
"""

from __future__ import annotations

import pytest
import torch

from . import contenders as c
from .workloads import layers

pytest.importorskip("pytest_benchmark")

LAYERS = {layer.name: layer for layer in layers()}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("measure", c.MEASURES)
@pytest.mark.parametrize("contender", ("plain", "reference", "ours"))
def test_layer(benchmark, name: str, measure: str, contender: str) -> None:
    torch.manual_seed(0)
    calls, refused = c.timed(LAYERS[name], c.build(LAYERS[name], compile_too=False), measure)
    assert contender in calls, refused[contender]
    benchmark.group = f"{name} {measure}"
    benchmark(calls[contender])
