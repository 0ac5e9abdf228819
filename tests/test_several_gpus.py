"""Several GPUs in one machine: each call is served, chosen, measured and reported for the one that holds its tensors.

None is needed: fake tensors lie on GPUs that are not there.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from coda_families import FORMULAS
from coda_families import layer as alignment
from publishing import publish
from torch import nn
from torch._subclasses import FakeTensorMode

import bcos_kernels as bk
from bcos_kernels import adopt, dynamic_alignment, norm
from bcos_kernels.compat import import_reference
from bcos_kernels.core import choice, device, env, tuned
from bcos_kernels.gpu import timing
from bcos_kernels.transform import TRANSFORM, Inputs, Spec
from bcos_kernels.transform.call import of, of_shapes

batch_norm = import_reference().modules.norms.uncentered_norms.BatchNormUncentered2d

NAMES, ARCHITECTURES = ("Display", "Cruncher", "Cruncher"), ("sm_75", "sm_90", "sm_90")
CALL = of_shapes((2, 6, 9, 8), (5, 6, 3, 3))
WAY = {"candidate": "vendor", "tile": None, "seconds": {"vendor": 1e-5}}


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Three GPUs, of which the first is the current one; and a file of choices of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)  # 2.11 asks the driver
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: NAMES[index or 0])
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(device, "architecture", lambda index=None: ARCHITECTURES[index or 0])
    monkeypatch.setattr(env, "INTERPRETED", False)
    monkeypatch.setattr(tuned, "PATH", tmp_path / "choices.json")
    caches = (choice.choose.cache_clear, choice.taking_map.cache_clear, tuned.forget)
    for clear in caches:
        clear()
    yield
    for clear in caches:
        clear()


def fake(*shape: int, index: int) -> torch.Tensor:
    return torch.empty(shape, device=torch.device("cuda", index))


@pytest.mark.parametrize("index", range(len(NAMES)))
def test_a_call_names_its_gpu(gpus, index):
    with FakeTensorMode():
        x, weight, scale = fake(2, 3, 5, 5, index=index), fake(4, 3, 1, 1, index=index), fake(3, index=index)
        rows = fake(12, 2, index=index)
        calls = [
            of(Inputs(x, weight, None, None), Spec((1, 1), (0, 0), (1, 1))),
            norm.call.of(norm.Inputs(x, scale, None, None, None), norm.Spec()),
            dynamic_alignment.call.of(
                dynamic_alignment.Inputs(x, fake(2, 2, 5, 5, index=index), rows, None), dynamic_alignment.Spec((1, 1))
            ),
        ]
    assert [(call.index, call.arch) for call in calls] == [(index, ARCHITECTURES[index])] * 3


def test_choices_are_those_of_the_gpu_of_the_tensors(gpus):
    """That a call of the first GPU is measured says nothing of another, and the same name is the same GPU."""
    tuned.store({tuned.key(CALL, "training"): {"cuda": WAY}}, 1)
    for index, measured in enumerate((False, True, True)):
        call = replace(CALL, index=index)
        assert (tuned.find(call, "training") is not None) == measured
        found = choice.choose(TRANSFORM, "cuda", call, "training")
        assert found.reason.startswith("measured" if measured else "predicted")


def test_tune_measures_each_kind_of_gpu_on_one_of_it(gpus, monkeypatch):
    """And stores what it found for that one: the first GPU, which is the current one, is as slow as a display's."""
    measured, best = [], {"Display": 3.0, "Cruncher": 1.0}

    def run_once(model, args):
        for index in range(len(NAMES)):
            choice.choose(TRANSFORM, "cuda,triton", replace(CALL, index=index), "forward")

    def measure(what, where, done):
        measured.append((where, what.direction))
        return [timing.Trial(candidate, None, best[NAMES[where.index]]) for candidate, _ in choice.ways(*what)[-1:]]

    monkeypatch.setattr(adopt, "run_once", run_once)
    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(timing, "kernels", lambda calls: [])
    found = bk.tune(nn.ReLU(), torch.ones(1), directions=("forward", "training"), progress=False)
    places = [torch.device("cuda", index) for index in (0, 1)]
    assert measured == [(place, direction) for place in places for direction in ("forward", "training")]
    assert "4 of 4 measured on Display, torch" in str(found) and " and Cruncher, torch" in str(found)
    stored = tuned.read()
    assert len(stored) == 2
    for name, choices in stored.items():
        seconds = {time for of_call in choices.values() for way in of_call.values() for time in way["seconds"].values()}
        assert seconds == {best[name.partition(",")[0]]}


@pytest.mark.parametrize(
    "kind, make, older",
    [("norm", lambda: batch_norm(4), None), ("alignment", alignment, "torch")],
    ids=["norm", "alignment"],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_report_tells_what_serves_a_module_on_its_gpu(gpus, kind, make, older, index, monkeypatch):
    """The first GPU is too old for every kernel."""
    publish(monkeypatch, FORMULAS)
    model = bk.accelerate(nn.Sequential(bk.BcosConv2d(3, 4), make()))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model._apply(lambda t: torch.empty_like(t, device=torch.device("cuda", index)))
        (row,) = bk.report(model).of(kind)
    assert row.backend == ("triton" if index else older)
