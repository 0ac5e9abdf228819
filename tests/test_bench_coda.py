"""CoDA-Nets in the bench: their networks, a run, and what is listed."""

import json
from dataclasses import replace

import pytest
import torch
from coda_families import doubled, network
from torch import nn

from bcos_kernels import DAUConv2d
from bcos_kernels.cli import main
from bcos_kernels.cli.bench import coda, run, tables
from bcos_kernels.cli.bench.devices import Cpu
from bcos_kernels.cli.bench.results import read

SMALL = replace(
    coda.CODA_NETS["coda_cifar10"], image=8, batch=3, outputs=(4, 4, 5), ranks=(3, 4, 5), kernels=(3, 3, 1),
    strides=(1, 2, 1), temperature=2.0,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """A network of a few weights in the place of the published one."""
    monkeypatch.setattr(Cpu, "copied", 1 << 16)
    monkeypatch.setattr(Cpu, "product", 64)
    monkeypatch.setattr(run, "BEFORE", 0.0)
    monkeypatch.setitem(coda.CODA_NETS, "coda_cifar10", SMALL)


def test_both_networks_compute_what_the_stand_in_of_the_authors_code_does(small):
    made = coda.contenders("coda_cifar10", nn.Module.double, {"ours"})
    theirs = doubled(network(SMALL.outputs, SMALL.ranks, SMALL.kernels, SMALL.strides, SMALL.temperature))
    values, x = list(theirs.state_dict().values()), torch.rand(2, 6, 8, 8, dtype=torch.float64)
    expected = theirs(x) + 2.2 - 2.1972
    for name, contender in made.items():
        module = contender.module
        module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))
        assert torch.allclose(module(x), expected, rtol=1e-10), name
    kinds = [type(module[0]) for module in (made["reference"].module, made["ours"].module)]
    assert kinds == [coda.AlignmentConv2d, DAUConv2d]


@pytest.mark.parametrize("name, expected", [("coda_cifar10", 58), ("coda_imagenet", 1.2 * 1024)])
def test_the_sizes_are_those_of_the_published_configurations(name, expected):
    """The MiB that the dynamic weights of an image would take at once."""
    net = coda.CODA_NETS[name]
    channels, size, weights = 6, net.image, 0
    for o, k, s in zip(net.outputs, net.kernels, net.strides, strict=True):
        size = (size + 2 * (k // 2) - k) // s + 1
        weights += size**2 * channels * k**2 * o
        channels = o
    assert weights * 4 / 2**20 == pytest.approx(expected, rel=0.02)


def test_a_run_of_a_coda_net(small, tmp_path, capsys):
    out = tmp_path / "coda.json"
    measures = ["inference", "training", "explanation", "class explanations", "explanation loss"]
    options = ["--device", "cpu", "--seconds", "0", "--models", "coda_cifar10", "--out", str(out)]
    assert main(["bench", *options, "--measures", *measures, "explained batch"]) == 0
    result = read(out)
    assert [row["measure"] for row in result["rows"]] == measures
    for row in result["rows"]:
        assert (row["workload"], row["batch"], row["image"]) == ("coda_cifar10", 3, 8) and not row["refused"]
        assert row["contenders"].keys() == {"reference", "ours"} and row["served"] == {"ours": {"cpu": 3}}
        assert max(row["contenders"]["ours"]["errors"]) < 1e-4
    figures = {what: bound for what, _, bound, *_ in tables.goals(result).rows}
    assert figures["CoDA-Net, CIFAR-10 training, reference ÷ ours"] == "≥ 4"
    assert figures["CoDA-Net, CIFAR-10 training, peak memory, reference ÷ ours"] == "≥ 8"
    assert not any(what.startswith("models,") for what in figures)
    assert "coda_cifar10" in capsys.readouterr().out and json.loads(out.read_text())["complete"]


def test_the_list_names_the_network_and_no_layers(capsys):
    assert main(["bench", "--list", "--device", "cpu", "--models", "coda_cifar10", "coda_imagenet"]) == 0
    text = capsys.readouterr().out
    assert "coda_cifar10, batch 16" in text and "coda_imagenet, batch 1\n" in text and "layers, each" not in text
