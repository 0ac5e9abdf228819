"""The GPU kernels' own tests, on a GPU or on the CPU in what stands in for one (``where.py``)."""

from contextlib import ExitStack

import pytest
import torch
from where import BACKENDS, STANDS_IN

from bcos_kernels.core import dispatch
from bcos_kernels.core.choice import forced

collect_ignore_glob = [] if BACKENDS else ["test_*.py"]


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="i/n: the i-th of n shares of the tests")


def pytest_collection_modifyitems(config, items):
    here, of = map(int, config.getoption("--share").split("/"))
    items[:] = items[here::of]
    if not STANDS_IN:
        for item in items:
            if "gpu_kernels" in item.path.parts:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request, monkeypatch):
    """The backend of every call that names none."""
    monkeypatch.setattr(dispatch, "FORCED", request.param)
    return request.param


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """torch lets cuDNN take tf32 for fp32 convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def force():
    """``force(candidate, tile)`` serves every call by one candidate, or by the first that there is."""
    with ExitStack() as stack:
        yield lambda candidate, tile=None: stack.enter_context(forced(candidate, tile))
