"""The layer that speaks to cuDNN: its own program against a stand-in for cuDNN (``tests/cudnn``), under sanitizers.

It needs g++. ``make plans`` builds real plans, without a GPU, by the cuDNN of NVIDIA's wheels.
"""

import os
import subprocess

import pytest
from emulated import GXX, SOURCES, cudnn_program, execute

CASES = ("cache", "damaged", "unusable", "refusals", "failures", "handles", "threads")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GXX or os.name != "posix", reason="the stand-in is compiled by g++, for Linux"),
]


def run(case: str, folder, **variables) -> str:
    environment = {**os.environ, **variables, "ASAN_OPTIONS": "detect_leaks=0"}  # handles stay until the process ends
    done = execute(cudnn_program(), case, folder, env=environment, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout[-4000:]
    return done.stdout.removesuffix("ok\n")


@pytest.mark.parametrize("case", CASES)
def test_against_the_stand_in(case, tmp_path):
    assert run(case, tmp_path) == ""


@pytest.mark.parametrize("version, spelled", [("90900", "9.9.0"), ("90999", "9.9.99"), ("100000", "10.0.0")])
def test_a_version_that_is_not_served(version, spelled, tmp_path):
    """It is told, and nothing of it is called."""
    said = run("unserved", tmp_path, MOCK_VERSION=version)
    assert said == f"cuDNN is version {spelled}, allowed: from 9.10.0 to below 10.0.0\n"


def test_without_cudnn(tmp_path):
    """The same program, where no library of that name is found."""
    source = tmp_path / "absent.cpp"
    source.write_text(
        '#include <cstdio>\n#include "common/cuda/cudnn/library.h"\n'
        "int main() {\n  try {\n    bcos::cudnn::api();\n  } catch (const bcos::cudnn::Error& error) {\n"
        "    std::puts(error.what());\n  }\n}\n"
    )
    library = SOURCES / "common" / "cuda" / "cudnn" / "library.cpp"
    command = [GXX, "-std=c++20", "-I", SOURCES, source, library, "-ldl", "-o", tmp_path / "absent"]
    subprocess.run(command, check=True)
    hidden = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run([tmp_path / "absent"], env=hidden, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cuDNN is not there: libcudnn.so.9: ")
