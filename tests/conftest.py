"""Shared fixtures: one thread count, fixed seeds, and NaN in every fresh buffer."""

import gc
import os
import textwrap
import time
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start

import torch

pytest.register_assert_rewrite("norm_checks")


APART = ("test_compile.py", "test_zoo.py")
"""Files whose tests take long and share nothing, so that they may run in different processes."""

LONGEST = (
    "cuda emulation", "triton interpreter", "test_cuda_kernels.py", "test_triton_", "test_zoo.py", "test_examples.py",
    "test_gpu_bench.py", "test_tune.py", "test_job.py", "test_cudnn.py", "test_derivatives.py", "test_cpu_kernels.py",
)  # fmt: skip
"""What takes longest, in the order in which it starts: a process that began it last would end long after the others."""
SHORTEST = "test_compile.py"
"""What starts last: many tests that take little each, and so let all processes end at about the same time."""


def pytest_ignore_collect(collection_path, config):
    """``-m gpu`` leaves out what needs no GPU, and may need packages that a GPU machine lacks."""
    here = collection_path.parent == Path(__file__).parent
    if here and collection_path.name.startswith("test_") and config.getoption("markexpr") == "gpu":
        return True


def pytest_collection_finish():
    """What was imported and collected stays until the end: Python need not search it for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Which tests stay together where pytest runs in several processes: what they build or compute is made once."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if "gpu_kernels/" in file and test.endswith(")"):  # test_name[backend] (stand-in)
                return test.rpartition(" (")[2]
            return nodeid if file.endswith(APART) else file

        def _assign_work_unit(self, node) -> None:
            if node not in self.registered_collections:  # in the place of one that died: it gets its tests later
                return
            self.workqueue.move_to_end(min(self.workqueue, key=self._rank), last=False)
            super()._assign_work_unit(node)

        @staticmethod
        def _rank(scope: str) -> int:
            usual = len(LONGEST) + (SHORTEST in scope)
            return next((i for i, name in enumerate(LONGEST) if name in scope), usual)

    return Scheduling(config, log)


@pytest.fixture
def backend():
    """The backend of tests that several backends share; on a GPU and its stand-ins theirs takes the place."""
    return "cpu"


@pytest.fixture
def device():
    """Where the tensors of these tests lie."""
    return "cpu"


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone.

    To destroy it holds the interpreter's lock and waits for its threads, which may need that lock to let go of finished
    work: they get the time to do so before. The objects of the test are gone by then.
    """
    dist = torch.distributed
    if not dist.is_available():
        pytest.skip("torch is built without torch.distributed")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    time.sleep(0.2)
    dist.destroy_process_group()


seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
"""Without a GPU ``torch.manual_seed`` would keep a stack trace for every kind of GPU, which takes a millisecond."""


@pytest.fixture(autouse=True)
def _seed():
    seed(0)


@pytest.fixture(autouse=True)
def _poisoned_buffers():
    """``torch.empty`` is filled with NaN (``torch.utils.deterministic``), so that an unwritten output shows."""
    fill, mode = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(mode)


@pytest.fixture(autouse=True)
def _one_thread():
    """Shapes are tiny: waking other threads would take most of the time."""
    torch.set_num_threads(1)


@pytest.fixture
def several_threads(_one_thread):
    """For what threads can do wrong: more of them than there are cores, so that they also wait for each other."""
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


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
