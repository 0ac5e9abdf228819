"""The fast part of the test suite on another torch: ``python3 .ci/other_torch.py 2.11.0 [pytest's arguments]``.

Everything is in ``build/torch-VERSION``: an environment with that torch and the releases that go with it, and in its
``src`` a copy of this checkout, where the extension is compiled for the CPU. Nothing outside of the folder changes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from environment import ROOT, complete, environment, run, step

LEFT_OUT = (".git", ".venv", "build", "dist", "*.so", "*.pyd", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
FAST = ("-m", "not slow and not gpu", "-n", "2")


def copied(folder: Path) -> Path:
    """This checkout without what was built in it; what was compiled in an earlier copy is kept."""
    copy = folder / "src"
    for entry in copy.glob("*"):
        if entry.is_dir() and entry.name != "build":
            shutil.rmtree(entry)
    shutil.copytree(ROOT, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return copy


def prepared(called: str, version: str, folder: Path, what: str, *command: str, **more: str) -> tuple[str, Path, dict]:
    """An environment with that torch, the copy, and the variables in which ``command`` has built ``what`` there.

    ``called`` is the target of make and its variable, which errors name.
    """
    if not re.fullmatch(r"2\.\d+\.\d+", version):
        sys.exit(f"make {called}={version}: a release of torch is needed, as in 2.11.0")
    try:
        python = environment(folder, f"torch=={version}")
        complete(python, "test")
        copy = copied(folder)
        variables = {**os.environ, "PYTHONPATH": str(copy), **more}
        with step(f"building {what}"):
            run(python, *command, cwd=copy, env=variables)
    except subprocess.CalledProcessError as error:
        sys.exit(f"make {called}={version} failed: {' '.join(map(str, error.cmd))}")
    return python, copy, variables


def main(arguments: list[str]) -> int:
    version, *options = arguments or [""]
    build = ("setup.py", "--quiet", "build_ext", "--inplace")
    more = {"BCOS_KERNELS_REQUIRE_C": "1", "BCOS_KERNELS_CUDA": "0"}
    folder = ROOT / "build" / f"torch-{version}"
    python, copy, variables = prepared("torch TORCH", version, folder, "the extension", *build, **more)
    return subprocess.run([python, "-m", "pytest", "-q", *FAST, *options], cwd=copy, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
