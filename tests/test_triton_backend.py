"""What the Triton backend says of calls that it does not serve, and how it chooses: without GPU and interpreter."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bcos_kernels.backends import triton
from bcos_kernels.backends.triton import plan
from bcos_kernels.backends.triton.problem import Problem
from bcos_kernels.spec import Call, Spec

CONV = Call(
    Spec((1, 1), (1, 1), (1, 1), out_dtype=torch.bfloat16), "cuda", torch.bfloat16, torch.bfloat16, (2, 8, 5, 5),
    (4, 8, 3, 3),
)  # fmt: skip
LAYER = Problem((256, 64, 56, 56), (64, 64, 3, 3), padding=(1, 1))


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(triton, "_architecture", lambda index=None: "sm_90")


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"device": "cpu"}, "device is 'cpu', the Triton kernels run on 'cuda', or on 'cpu' in the interpreter"),
        ({"device": "meta"}, "device is 'meta', the Triton kernels run on 'cuda'"),
        ({"dtype": torch.float64}, "dtype torch.float64 is none of torch.float32, torch.float16, torch.bfloat16"),
        ({"weight_dtype": torch.float16}, "weight dtype torch.float16 beside input dtype torch.bfloat16"),
        ({"zero_padded": False}, "the padding mode is not 'zeros'"),
        ({"spec": replace(CONV.spec, max_out=256)}, "max_out=256 is above 255"),
        ({"x_shape": (2**20, 8, 64, 64)}, "above 2147483647, the largest 32-bit index"),
        ({"spec": Spec(), "x_shape": (2**16, 2**15, 8), "weight_shape": (4, 8)}, "are above 2147483647"),
    ],
)
def test_reasons(hopper, changed, reason):
    assert triton.why_not(CONV) == []
    (found,) = triton.why_not(replace(CONV, **changed))
    assert reason in found


@pytest.mark.parametrize("arch, served", [("sm_75", False), ("sm_80", True), ("sm_120", True), ("gfx942", True)])
def test_architectures(monkeypatch, arch, served):
    monkeypatch.setattr(triton, "_architecture", lambda index=None: arch)
    found = triton.why_not(CONV)
    assert found == ([] if served else [f"the GPU's architecture is {arch}, the Triton kernels need sm_80 or later"])


def test_without_triton(hopper, monkeypatch):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert triton.why_not(CONV) == ["the package triton is not installed"]


def test_the_reasons_import_no_triton():
    code = (
        "import sys, torch, bcos_kernels; from bcos_kernels import dispatch; from bcos_kernels.spec import Call, Spec; "
        "call = Call(Spec(), 'cuda', torch.bfloat16, torch.bfloat16, (5, 8), (4, 8)); "
        "dispatch.reasons(call); print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    "changed, missing",
    [
        ({}, ()),
        ({"max_out": 2}, ("one-pass",)),
        ({"exponent": 1.5}, ("one-pass",)),
        ({"weight_shape": (64, 4, 3, 3), "groups": 16}, ("one-pass",)),
        ({"max_out": 32}, ("one-pass", "semi")),
        ({"weight_shape": (64, 1, 3, 3), "groups": 64}, ("semi",)),
    ],
)
def test_candidates(changed, missing):
    p = replace(LAYER, **changed)
    assert set(plan.candidates(p, "training")) == set(plan.CANDIDATES) - set(missing)
    assert set(plan.candidates(p, "forward")) == ({"vendor"} if p.max_out > 16 else {"one-pass", "vendor"})


@pytest.mark.parametrize("direction", plan.DIRECTIONS)
def test_the_choice_is_the_shortest_prediction(direction, monkeypatch):
    monkeypatch.setattr(plan.choices, "find", lambda p, direction: None)
    for channels, size in ((64, 56), (512, 7)):
        p = replace(LAYER, x_shape=(256, channels, size, size), weight_shape=(channels, channels, 3, 3))
        choice = plan.choose(p, direction)
        times = {name: plan.predict(p, direction, name) for name in plan.candidates(p, direction)}
        assert times[choice.candidate] == min(times.values()) > plan.plain_time(p, direction)
        assert choice.reason.startswith("predicted: ")
        assert choice == plan.choose(p, direction)


def test_memory_and_arithmetic_decide():
    """Large images of few channels are bound by memory; small ones of many by arithmetic, the vendor's strength."""
    wide = replace(LAYER, x_shape=(256, 256, 56, 56), weight_shape=(64, 256, 1, 1), padding=(0, 0))
    deep = replace(LAYER, x_shape=(256, 512, 7, 7), weight_shape=(512, 512, 3, 3))
    assert plan.choose(wide, "forward").candidate == "one-pass"
    assert plan.choose(deep, "forward").candidate == "vendor"
