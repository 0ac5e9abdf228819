"""Runs the Triton kernels' tests in Triton's interpreter, in processes of their own: Triton decides when imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARES = 2


@pytest.fixture(scope="module")
def shares():
    """One process for each share, all at once."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_kernels", f"--share={i}/{SHARES}"],
            cwd=HERE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(SHARES)
    ]
    yield runs
    for run in runs:
        run.kill()


@pytest.mark.parametrize("share", range(SHARES))
def test_kernels_in_the_interpreter(shares, share):
    output, _ = shares[share].communicate()
    assert shares[share].returncode == 0, output[-20000:]
    assert " passed" in output
