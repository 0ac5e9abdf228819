"""Races: the same bits in every run, and compute-sanitizer over a small set of calls."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import CANDIDATES
from on_gpu import SMALL, equal, run, tensors

CALLS = Path(__file__).with_name("small_calls.py")
CLEAN = re.compile(r"SUMMARY: .*\b0 errors")


@pytest.mark.parametrize("candidate", (*CANDIDATES, "tma", "tma-vendor"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", SMALL)
def test_runs_are_bit_equal(name, dtype, candidate, force, deterministic):
    force(candidate)
    inputs = tensors(SMALL[name], dtype)
    first = run(SMALL[name], *inputs)
    assert all(equal(run(SMALL[name], *inputs), first) for _ in range(9))


@pytest.fixture
def deterministic():
    """An operator without a deterministic form raises."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.mark.parametrize("candidate", ["one-pass", "semi", "tma", "tma-vendor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["conv3x3", "conv1x1", "linear"])
def test_repeats_are_bit_equal(name, dtype, candidate, force):
    """250 repeats: a tile overwritten while an asynchronous product still reads it differs once in a while."""
    force(candidate)
    x, weight = tensors(SMALL[name], dtype)
    upward = torch.randn_like(SMALL[name](x, weight))
    first = run(SMALL[name], x, weight, upward)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(250):  # without a sync in between, so that launches follow one another closely
        for mine, expected in zip(run(SMALL[name], x, weight, upward), first, strict=True):
            different += (mine != expected).sum()
    assert different.item() == 0


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer(tool, backend):
    program = sanitizer()
    calls = [sys.executable, str(CALLS)]
    environment = {
        **os.environ,
        "BCOS_KERNELS_BACKEND": backend,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }  # each tensor an allocation with its own bounds
    environment["PYTHONPATH"] = os.pathsep.join([str(CALLS.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    alone = subprocess.run(calls, env=environment, capture_output=True, text=True)  # compiles, too
    assert alone.returncode == 0, alone.stderr[-3000:]
    command = [program, "--tool", tool, "--target-processes", "application-only", "--error-exitcode", "99", *calls]
    checked = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0 and CLEAN.search(checked.stdout), (checked.stdout + checked.stderr)[-6000:]


@cache
def sanitizer() -> str:
    """The path of compute-sanitizer; skips where there is none or where it does not take this GPU."""
    places = [Path(root) / "bin" for root in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if root]
    program = next(filter(None, (shutil.which("compute-sanitizer", path=p) for p in (None, *map(str, places)))), None)
    if program is None:
        pytest.skip("compute-sanitizer is neither on the PATH nor in CUDA_HOME")
    trivial = [program, "--target-processes", "application-only", sys.executable, "-c"]
    tried = subprocess.run([*trivial, "import torch; torch.ones(1).cuda() + 1"], capture_output=True, text=True)
    if tried.returncode != 0 or not CLEAN.search(tried.stdout):
        pytest.skip(f"compute-sanitizer does not run a program of two lines here: {tried.stdout[-300:].strip()}")
    return program
