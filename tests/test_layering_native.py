"""The house rule of the C++ code: includes lead down the floors, an op knows no other op, and none form a cycle."""

import re
from pathlib import Path

import pytest
from graphs import cycles

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
FLOORS = {
    "bindings": 8,
    "glue/cuda/candidates": 7,
    "glue/cuda": 6,
    "glue": 5,
    "cpu": 4, "cuda": 4,
    "": 3,
    "common/cpu": 2, "common/cuda": 2,
    "common/cuda/cudnn": 1, "common/autograd": 1,
    "common": 0,
}  # fmt: skip
"""Of the folders of every op, of what binds them all, and of what they share."""


def includes() -> dict[str, list[str]]:
    """File -> the files that it includes by name, both relative to ``csrc``."""
    files = (path for path in SOURCES.rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh"))
    return {path.relative_to(SOURCES).as_posix(): INCLUDE.findall(path.read_text()) for path in files}


def place(file: str) -> tuple[str, int]:
    """The op that a file belongs to ("" for none), and its floor."""
    op, *folders = Path(file).parts[:-1] or [""]
    if op == "":
        return "", FLOORS["bindings"]
    if op == "common":
        return "", FLOORS["/".join((op, *folders))]
    return op, FLOORS["/".join(folders)]


def violations(graph: dict[str, list[str]]) -> list[str]:
    """What in the graph of includes breaks the rule, one sentence each."""
    found = []
    for file, names in graph.items():
        op, floor = place(file)
        for name in names:
            if name not in graph:
                found.append(f"{file} includes {name}, which is not there")
                continue
            other_op, other_floor = place(name)
            if other_floor > floor or (other_floor == floor and Path(file).parent != Path(name).parent):
                found.append(f"{file} includes {name}, which stands above or beside it")
            if op and other_op and op != other_op:
                found.append(f"{file} includes {name}, which belongs to another op")
    return found + [f"these include each other: {' -> '.join(cycle)}" for cycle in cycles(graph)]


def test_includes_lead_down_and_form_no_cycle():
    graph = includes()
    assert len(graph) > 50 and sum(map(len, graph.values())) > 100  # the files are found and parsed
    assert violations(graph) == []


@pytest.mark.parametrize(
    "file, name, complaint",
    [
        ("transform/spec.h", "transform/cpu/scale.h", "above or beside"),
        ("transform/cpu/scale.h", "transform/glue/arguments.h", "above or beside"),
        ("transform/cpu/scale.h", "transform/cuda/params.h", "above or beside"),
        ("transform/glue/arguments.h", "transform/glue/cuda/call.h", "above or beside"),
        ("transform/glue/cuda/call.h", "transform/glue/cuda/candidates/vendor.cpp", "above or beside"),
        ("common/checks.h", "transform/spec.h", "above or beside"),
        ("common/checks.h", "common/cpu/types.h", "above or beside"),
        ("common/cpu/types.h", "common/cuda/dtype.h", "above or beside"),
        ("common/scalar.h", "common/gone.h", "is not there"),
        ("common/cuda/cudnn/plan.h", "common/cuda/device.h", "above or beside"),
        ("common/macros.h", "common/scalar.h", "include each other"),
        ("transform/spec.h", "transform/tensors.h", "include each other"),
    ],
)
def test_a_wrong_include_is_found(file, name, complaint):
    graph = includes()
    assert file in graph
    graph[file] = [*graph[file], name]
    assert any(complaint in sentence and name in sentence for sentence in violations(graph))


def test_an_op_that_includes_another_is_found():
    graph = includes()
    graph["norm/spec.h"] = ["transform/spec.h", "common/checks.h"]
    assert "norm/spec.h includes transform/spec.h, which belongs to another op" in violations(graph)
