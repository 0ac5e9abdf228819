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


def main(arguments: list[str]) -> int:
    version, *options = arguments or [""]
    if not re.fullmatch(r"2\.\d+\.\d+", version):
        sys.exit(f"make torch TORCH={version}: a release of torch is needed, as in TORCH=2.11.0")
    folder = ROOT / "build" / f"torch-{version}"
    try:
        python = environment(folder, f"torch=={version}")
        complete(python, "test")
        copy = copied(folder)
        variables = {**os.environ, "PYTHONPATH": str(copy), "BCOS_KERNELS_REQUIRE_C": "1", "BCOS_KERNELS_CUDA": "0"}
        with step("building the extension"):
            run(python, "setup.py", "--quiet", "build_ext", "--inplace", cwd=copy, env=variables)
    except subprocess.CalledProcessError as error:
        sys.exit(f"make torch TORCH={version} failed: {' '.join(map(str, error.cmd))}")
    command = [python, "-m", "pytest", "-q", *FAST, *options]
    return subprocess.run(command, cwd=copy, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
