"""The GPU kernels' own tests, on a GPU or on the CPU in what stands in for one (``where.py``).

With a GPU they run in this process and are marked gpu. All other runs have them once for each stand-in, in processes
of its own (``stand_ins.py``), marked slow.
"""

from contextlib import ExitStack

import pytest
import torch
import where
from stand_ins import StandInFile, StandInTest, stand_ins
from where import BACKENDS, STANDS_IN

from bcos_kernels.core import dispatch
from bcos_kernels.core.choice import forced

STARTED = pytest.StashKey[list]()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    native = yield
    if STANDS_IN or not native:
        return native
    marks = parent.config.getoption("markexpr")
    found = list(native) if BACKENDS or marks == "gpu" else []
    if marks == "gpu" or "not slow" in marks:  # nothing that runs in a stand-in was asked for
        return found
    if STARTED not in parent.config.stash:
        parent.config.stash[STARTED] = stand_ins()
        for each in parent.config.stash[STARTED]:
            parent.config.add_cleanup(each.stop)
    for each in parent.config.stash[STARTED]:
        file = StandInFile.from_parent(parent, path=file_path)
        file.stand_in = each
        found.append(file)
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """The seconds and the output of a test in a stand-in are its own: without the wait for it, from its process."""
    report = yield
    if call.when == "call" and isinstance(item, StandInTest) and item.told is not None:
        report.duration = item.told["seconds"]
        report.sections.extend((heading, written) for heading, written in item.told["output"])
    return report


def pytest_addoption(parser):
    parser.addoption("--share", default="0/1", help="i/n: the i-th of n shares of the tests")


def pytest_collection_modifyitems(config, items):
    here, of = map(int, config.getoption("--share", "0/1").split("/"))
    items[:] = items[here::of]
    items.sort(key=lambda item: item.stand_in.name if isinstance(item, StandInTest) else "")  # one after the other
    if not STANDS_IN:
        for item in items:
            if "gpu_kernels" in item.path.parts and not isinstance(item, StandInTest):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def _kernels():
    where.load_emulated()


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


@pytest.fixture
def device():
    """Where the tensors of a test lie."""
    return where.DEVICE
