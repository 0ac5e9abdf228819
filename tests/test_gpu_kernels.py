"""Runs the GPU kernels' tests without a GPU: Triton's in its interpreter, the CUDA ones in an emulation.

Each in processes of its own: Triton decides when it is imported, and a fault of an emulated kernel ends its process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import GXX, HEADERS, module

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SHARES = 2


def started(environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "gpu_kernels", *arguments]
    return subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def check(run: subprocess.Popen) -> None:
    try:
        output, _ = run.communicate()
    finally:
        run.kill()
    assert run.returncode == 0, output[-20000:]
    assert " passed" in output


@pytest.fixture(scope="module")
def shares():
    """One process for each share, all at once."""
    runs = [started({"TRITON_INTERPRET": "1"}, f"--share={i}/{SHARES}") for i in range(SHARES)]
    yield runs
    for run in runs:
        run.kill()


@pytest.mark.parametrize("share", range(SHARES))
def test_triton_in_its_interpreter(shares, share):
    check(shares[share])


if GXX and HEADERS:

    def test_cuda_in_the_emulation():
        check(started({"BCOS_TEST_EMULATED": str(module())}))
