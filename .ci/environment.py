"""Prepares the environment of the Makefile, with the standard library alone.

Without an argument it makes ``.venv`` with torch and everything in the ``test`` extra of pyproject.toml.
With the path of an interpreter that has a torch of its own, it adds to that what is missing.
Neither ever replaces a torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
TORCH = "torch==2.13.0"
PINNED = {"torchvision": "torchvision==0.28.0", "triton": "triton==3.7.1"}  # the releases that go with TORCH
ALONE = ("torchvision", "bcos")  # without their dependencies: torchvision's is a torch of its choice
BUILD = ["pip", "setuptools>=77", "wheel"]
NEWER = ("python3.13", "python3.12", "python3.11", "python3.10")


def requirements(extra: str) -> list[str]:
    """The requirements of one extra in pyproject.toml."""
    try:
        import tomllib
    except ImportError:  # Python 3.10: pip carries the same parser
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"][extra]


def distribution(requirement: str) -> str:
    """``bcos==0.1.3`` -> ``bcos``."""
    return re.match(r"[\w.-]+", requirement).group()


def missing(python: str, names: list[str]) -> list[str]:
    """Those of the distributions ``names`` that ``python`` does not have."""
    code = (
        "import sys, importlib.metadata as m\n"
        "for n in sys.argv[1:]:\n"
        "    try: m.version(n)\n"
        "    except m.PackageNotFoundError: print(n)"
    )
    return run(python, "-c", code, *names, capture_output=True, text=True).stdout.split()


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, **options)


def pip_install(python: str, *arguments: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)


def complete(python: str, pinned: dict[str, str]) -> None:
    """Installs what ``python`` lacks of the ``test`` extra; its torch stays as it is."""
    wanted = {distribution(r): r for r in requirements("test")}
    absent = missing(python, list(wanted))
    alone = [pinned.get(name, wanted[name]) for name in absent if name in ALONE]
    rest = [pinned.get(name, wanted[name]) for name in absent if name not in ALONE]
    if rest:
        print(f"installing {', '.join(rest)}", flush=True)
        pip_install(python, *rest)
    if alone:
        print(f"installing {', '.join(alone)}", flush=True)
        pip_install(python, "--no-deps", *alone)


def prepare_venv() -> None:
    python = str(ROOT / ".venv/bin/python")
    if not Path(python).exists():
        print("making .venv", flush=True)
        run(sys.executable, "-m", "venv", str(ROOT / ".venv"))
    if missing(python, ["torch", "wheel"]):
        print(f"installing {TORCH}", flush=True)
        pip_install(python, "--upgrade", *BUILD)
        pip_install(python, TORCH)
    complete(python, PINNED)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = run(python, "-c", code, capture_output=True, text=True).stdout.strip()
    # the sources are the package: an installation, editable or not, would compile everything on each change
    Path(packages, "bcos_kernels_sources.pth").write_text(f"{ROOT}\n", encoding="utf-8")


def prepare_given(python: str) -> None:
    try:
        run(python, "-c", "import torch, setuptools", stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"BCOS_PYTHON={python}: must be an interpreter that can import torch and setuptools")
    try:
        complete(python, {})
    except subprocess.CalledProcessError:
        print("some requirements could not be installed: what needs them will say so", flush=True)


def newer_interpreter() -> str | None:
    """A Python that is new enough, where the one that runs this is not."""
    probe = f"import sys; sys.exit(sys.version_info < {OLDEST})"
    for name in NEWER:
        try:
            if subprocess.run([name, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0:
                return name
        except OSError:
            continue
    return None


def main(*arguments: str) -> None:
    if sys.version_info < OLDEST:
        newer = newer_interpreter()
        if newer is None:
            sys.exit("Python 3.10 or newer is needed: the interpreters found here are older")
        os.execvp(newer, [newer, __file__, *arguments])
    try:
        prepare_given(arguments[0]) if arguments else prepare_venv()
    except subprocess.CalledProcessError as error:
        sys.exit(f"set-up failed: {' '.join(map(str, error.cmd))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
