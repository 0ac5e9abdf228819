"""Shared fixtures: one thread count, fixed seeds, and NaN in every fresh buffer."""

import textwrap
from pathlib import Path

import pytest
import torch


def pytest_ignore_collect(collection_path, config):
    """``-m gpu`` leaves out what needs no GPU, and may need packages that a GPU machine lacks."""
    here = collection_path.parent == Path(__file__).parent
    if here and collection_path.name.startswith("test_") and config.getoption("markexpr") == "gpu":
        return True


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_buffers():
    """``torch.empty`` is filled with NaN (``torch.utils.deterministic``), so that an unwritten output shows."""
    fill, mode = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(mode)


@pytest.fixture
def one_thread():
    """Shapes are tiny: waking other threads would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    """A function that writes the files of a program, ``package:module=text``, and returns their folder."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / f"{name.replace(':', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return tmp_path

    yield write
    assert not list(tmp_path.glob("bcos_kernels-run-*")), "the folder of a job was left behind"
