"""Builds a wheel and a source archive into dist/, and says what they took; with the standard library alone.

With a CUDA torch the wheel carries the CUDA kernels for every GPU that setup.py names, whichever is here;
``TORCH_CUDA_ARCH_LIST`` names others. ``--check`` installs the wheel and asks it what it carries.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

CHECK = """
import json, torch, bcos_kernels
from bcos_kernels import _C
from bcos_kernels.gpu import cuda
names = ("transform", "transform_backward", "norm", "norm_backward")
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({
    "torch": torch.__version__,
    "cuda": _C.cuda.build_info() if hasattr(_C, "cuda") else None,
    "dispatch": {n: [k for k in ("CPU", "CUDA") if has(f"bcos_kernels::{n}", k)] for n in names},
    "loaded": cuda.absent or "the CUDA kernels are loaded",
    "here": _C.cuda.why_not() if hasattr(_C, "cuda") else "no CUDA kernels",
}))
"""


def build() -> tuple[Path, float]:
    """The wheel, and the seconds that its build took from nothing."""
    for old in (*ROOT.glob("build/lib*"), *ROOT.glob("build/bdist*"), *ROOT.glob("build/temp*")):
        shutil.rmtree(old)
    options = {"BCOS_KERNELS_REQUIRE_C": "1", "BCOS_KERNELS_EVERY_GPU": "1", "BCOS_KERNELS_TAG": "1"}
    environment = {**options, **os.environ}
    start = time.monotonic()
    command = (*PIP, "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", str(DIST), ".")
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - start
    return max(DIST.glob("*.whl"), key=lambda path: path.stat().st_mtime), seconds


def sdist() -> Path:
    """The source archive, whose version names no torch."""
    subprocess.run((sys.executable, "setup.py", "--quiet", "sdist"), cwd=ROOT, check=True)
    return max(DIST.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)


def carried(wheel: Path) -> dict:
    """What the installed wheel says of itself, away from the sources."""
    subprocess.run((*PIP, "install", "--quiet", "--force-reinstall", "--no-deps", str(wheel)), check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    told = subprocess.run((sys.executable, "-c", CHECK), cwd=DIST, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"wheel.py {' '.join(arguments)}: the only option is --check", file=sys.stderr)
        return 2
    wheel, seconds = build()
    sdist()
    size = wheel.stat().st_size / 2**20
    cores = os.cpu_count()
    print(f"{wheel.relative_to(ROOT)}: {size:.1f} MiB, built in {seconds:.0f} s on {cores} {platform.machine()} cores")
    if not arguments:
        return 0
    found = carried(wheel)
    cuda = found["cuda"]
    if cuda is None:
        print("the wheel carries no CUDA kernels: a torch with CUDA and CUDA_HOME are needed", file=sys.stderr)
        return 1
    names = " ".join(f"{arch // 10}" for arch in cuda["architectures"])
    print(f"torch {found['torch']}, CUDA {cuda['runtime'] / 1000:.1f}, compute capabilities {names}; {found['loaded']}")
    print(f"on this machine: {found['here'] or 'they run'}")
    missing = [name for name, keys in found["dispatch"].items() if keys != ["CPU", "CUDA"]]
    print(f"CPU and CUDA dispatch entries: {'all' if not missing else 'missing of ' + ', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
