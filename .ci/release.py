"""Builds the files of a release, lets twine check them, and tries each in clean environments: ``make release``.

A clean environment has torch, what torch requires and what builds the extension, and nothing else: links to those of
the interpreter that runs this, so that nothing is downloaded. The wheel must bring its kernels with it; the source
archive compiles them where there is a compiler, and installs without them where there is none.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from wheel import PIP, build, sdist

NEEDED = ("torch", "setuptools", "wheel")
SMOKE = """
import json, subprocess, sys, torch, bcos_kernels as bk
command, kernels = sys.argv[1:]
told = json.loads(subprocess.run([command, "doctor", "--json"], check=True, stdout=subprocess.PIPE).stdout)
served = told["served"]["cpu"]["conv2d"]["float32"]
assert served == ("cpu" if kernels == "kernels" else "reference"), told["state"]["compiled extension"]
x, layer = torch.randn(2, 6, 9, 9, requires_grad=True), bk.BcosConv2d(6, 8, 3, padding=1)
y = layer(x)
exact = bk.functional.bcos_conv2d(x.double(), layer.linear.weight.double(), padding=1, backend="reference")
for own, right in zip((y, *torch.autograd.grad(y.sum(), x)), (exact, *torch.autograd.grad(exact.sum(), x))):
    assert (own - right).norm() <= 1e-6 * right.norm(), (own - right).norm() / right.norm()
print(told["verdict"])
"""


def closure(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """These distributions and all that they require, as far as they are installed."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop().lower())
        try:
            distribution = found.get(name) or metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found[name] = distribution
            required = [line for line in distribution.requires or () if "extra ==" not in line]
            waiting += [re.match(r"[\w.-]+", line)[0] for line in required]
    return found


def clean_environment(folder: Path) -> Path:
    """Makes the environment; returns its folder of commands."""
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", str(folder)), check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    for distribution in closure(NEEDED).values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin"


def tried(file: Path, compiler: bool) -> str:
    """Installs a file in a clean environment and tries it; returns what ``doctor`` says there."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BCOS_KERNELS_TAG")}
    with tempfile.TemporaryDirectory() as folder:
        commands = clean_environment(Path(folder, "environment"))
        path = [str(commands), *([str(Path(sys.executable).parent), kept["PATH"]] if compiler else [])]
        # torch warns of a NumPy that is not there, and a clean environment has none
        environment = kept | {"PATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"}
        python = str(commands / "python")
        install = (*PIP, "--python", python, "install", "--quiet", "--no-index", "--no-build-isolation", str(file))
        subprocess.run(install, env=environment, cwd=folder, check=True)
        kernels = "kernels" if compiler or file.suffix == ".whl" else "none"
        smoke = (python, "-c", SMOKE, str(commands / "bcos-kernels"), kernels)
        run = subprocess.run(smoke, env=environment, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        return run.stdout.strip().splitlines()[-1]


def main() -> int:
    made, seconds = build()
    files = made, sdist()
    print(f"built in {seconds:.0f} s: {', '.join(f'{f.name} ({f.stat().st_size / 2**20:.1f} MiB)' for f in files)}")
    subprocess.run((sys.executable, "-m", "twine", "check", "--strict", *map(str, files)), check=True)
    for file in files:
        for compiler in (True, False):
            start = time.monotonic()
            told = tried(file, compiler)
            where = f"{file.name}, {'with' if compiler else 'without'} a compiler"
            print(f"{where}: {told} ({time.monotonic() - start:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"make release failed: {' '.join(map(str, error.cmd[:8]))}")
