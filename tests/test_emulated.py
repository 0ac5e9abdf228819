"""What is compiled for the tests is compiled anew when a file that it includes has changed, and only then."""

import os

import pytest
from emulated import CUDNN, EMULATION, GXX, HEADERS, KERNELS, SOURCES, digest, execute, included

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GXX or os.name != "posix", reason="the tests compile by g++, on Linux"),
]


def test_a_change_is_seen_where_it_is_included(tmp_path):
    texts = {
        "own/source.cpp": '#include <vector>\n#include "beside.h"\n#  include <far/first.h>\n',
        "own/beside.h": '#pragma once\n#include "own/source.cpp"\n',
        "far/first.h": '#ifdef NEVER\n#include "far/second.h"\n#endif\n',
        "far/second.h": "",
        "far/other.h": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def key(*flags: str) -> str:
        included.cache_clear()
        return digest(GXX, *flags, of=(tmp_path / "own" / "source.cpp",), places=(tmp_path,))

    known = {key("-O1"), key("-O2")}
    assert len(known) == 2
    (tmp_path / "far" / "other.h").write_text("int other;\n")
    assert {key("-O1"), key("-O2")} == known
    for name in ("far/second.h", "far/first.h", "own/beside.h", "own/source.cpp"):
        (tmp_path / name).write_text(texts[name] + "int changed;\n")
        assert key("-O1") not in known, name
        known.add(key("-O1"))


@pytest.mark.skipif(not HEADERS, reason="the headers of the CUDA toolkit are not here")
@pytest.mark.parametrize("source", [KERNELS[0], KERNELS[-1], CUDNN / "program.cpp"], ids=lambda path: path.stem)
def test_the_compiler_includes_nothing_else(source):
    places = (EMULATION, SOURCES)
    told = execute(GXX, "-std=c++20", "-MM", "-I", places[0], "-I", places[1], "-isystem", HEADERS, "-x", "c++", source)
    assert told.returncode == 0, told.stdout
    names = told.stdout.replace("\\\n", " ").split()[1:]
    found = {path.resolve() for path in included(source, *places)}
    assert len(names) > 1 and {os.path.realpath(name) for name in names} <= {*map(str, found)}
