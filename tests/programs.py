"""Programs that tests write and run: plain, or by ``python -m bcos_kernels run``."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUN = ("-m", "bcos_kernels", "run")


def start(*args, cwd, **environment) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(cwd), **environment}
    command = [sys.executable, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=env, preexec_fn=heed_interrupts, **pipes)


def heed_interrupts() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and so are the tests and their programs then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def outcome(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run(*args, **options) -> tuple[int, str, str]:
    return outcome(start(*RUN, *args, **options))


def summary(err: str) -> list[str]:
    """The lines of the summary, which ends what was written to stderr and stands there once."""
    assert err.count("bcos_kernels: ") == 1, err
    return err[err.index("bcos_kernels: ") :].splitlines()
