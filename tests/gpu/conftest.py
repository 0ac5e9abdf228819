"""Tests that only a GPU can run: ``pytest -m gpu``. ``make gpu`` shares them among processes, which compile at once."""

import fcntl
import os
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from bcos_kernels.core import dispatch
from bcos_kernels.core.choice import forced

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once; without it no run is deterministic
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    if all(item.path.parent.name in (HERE.name, "gpu_kernels") for item in items):
        items.sort(key=place)


def place(item) -> int:
    """Mixed: a run that is stopped has seen some of every kind; what takes a minute comes last."""
    late = "models" in item.path.name or "sanitizer" in item.name
    return (late << 32) + zlib.crc32(item.nodeid.encode())


def pytest_collection_finish(session):
    if not torch.cuda.is_available() and any(item.get_closest_marker("gpu") for item in session.items):
        pytest.exit("the tests marked gpu need a GPU: torch.cuda.is_available() is False here", returncode=4)


@pytest.fixture(autouse=True, params=("cuda", "triton"))
def backend(request, monkeypatch):
    """The backend of every call that names none."""
    monkeypatch.setattr(dispatch, "FORCED", request.param)
    return request.param


@pytest.fixture(autouse=True)
def _full_precision():
    """cuDNN takes tf32 unless told otherwise; errors are compared with those of fp32 on a CPU.

    A test may set both settings. It cannot patch them: pytest 9.2 takes back a patch of an attribute that stands
    neither in an object nor in its class by deleting it, which cuBLAS's settings refuse.
    """
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = False
    yield
    cudnn.allow_tf32, cublas.allow_tf32 = before


@pytest.fixture
def force():
    """``force(candidate)`` serves every call by one candidate, or by the first that there is."""
    with ExitStack() as stack:
        yield lambda candidate: stack.enter_context(forced(candidate))


@pytest.fixture
def room():
    """``room(gib)`` waits for the other processes' large tests, then skips where the GPU has less free memory.

    Two of them run at the same time where memory is large, so that few processes wait for most of theirs.
    """
    places = 2 if torch.cuda.get_device_properties().total_memory > 128 << 30 else 1
    with open(Path(tempfile.gettempdir()) / f"bcos_kernels_gpu_{os.getpid() % places}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def check(gib: float) -> None:
            free = torch.cuda.mem_get_info()[0] / 2**30
            if free < gib:
                pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} GiB are free")

        yield check
        torch.cuda.empty_cache()
