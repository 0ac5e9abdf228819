"""The Triton kernels' own tests, on a GPU or, with ``TRITON_INTERPRET=1``, on the CPU in Triton's interpreter."""

import pytest
import torch
from where import INTERPRETED

from bcos_kernels.backends.triton import layer, plan

collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="i/n: the i-th of n shares of the tests")


def pytest_collection_modifyitems(config, items):
    here, of = map(int, config.getoption("--share").split("/"))
    items[:] = items[here::of]
    if not INTERPRETED:
        for item in items:
            if "triton_kernels" in item.path.parts:
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """torch lets cuDNN take tf32 for fp32 convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def force(monkeypatch):
    """``force(candidate, tile)`` serves every call by one candidate, or by the first that there is."""

    def forced(candidate: str, tile: plan.Tile | None = None) -> None:
        def choose(p, direction):
            served = plan.candidates(p, direction)
            return plan.Choice(candidate if candidate in served else served[0], tile, "forced by a test")

        monkeypatch.setattr(layer, "choose", choose)

    return forced
