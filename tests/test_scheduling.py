"""Which tests the processes of a test run get, and what happens to those of a process that dies."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("xdist")

TESTS = [f"tests/test_{number}.py::test" for number in range(8)]


class Worker:
    """What the scheduler knows of a process."""

    shutting_down, gateway = False, SimpleNamespace(id="a worker")

    def __init__(self):
        self.given = []

    def send_runtest_some(self, indices):
        self.given += indices

    def shutdown(self):
        self.shutting_down = True


def test_a_process_in_the_place_of_one_that_died_gets_tests_once_it_has_collected(pytestconfig):
    shared = pytestconfig.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    config = SimpleNamespace(getvalue=lambda _: ["2*popen"], option=SimpleNamespace(loadscopereorder=False))
    scheduler = shared.pytest_xdist_make_scheduler(config, None)
    first, second, third = workers = [Worker() for _ in range(3)]
    for worker in workers[:2]:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, TESTS)
    scheduler.schedule()
    assert first.given and second.given
    assert scheduler.remove_node(second) == TESTS[second.given[0]]
    scheduler.add_node(third)
    assert scheduler.remove_node(first) == TESTS[first.given[0]]
    assert not third.given
    scheduler.add_node_collection(third, TESTS)
    scheduler.schedule()
    assert third.given
