"""Prepares the environment of the Makefile, with the standard library alone: ``environment.py [PYTHON [EXTRA ...]]``.

PYTHON is an interpreter with a torch of its own, or empty for ``.venv``, which is made with torch where it is missing.
The requirements of the extras of pyproject.toml are added; a torch that is there is never replaced. ``uv`` installs
where it is on the PATH, and pip where it is not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
TORCH, TRITON = "torch==2.13.0", "triton==3.7.1"  # the Triton that goes with this torch
BUILD = ["pip", "setuptools>=77", "wheel", "ninja"]
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11", "python3.10")


def requirements(extra: str) -> list[str]:
    """The requirements of one extra in pyproject.toml, and of the extras that it names."""
    try:
        import tomllib
    except ImportError:  # Python 3.10: pip carries the same parser
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(\w+)\]", requirement)
        found += requirements(own[1]) if own else [requirement]
    return found


def run(*command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, check=True, **options)


def output(python: str, code: str) -> str:
    return run(python, "-c", code, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def step(what: str) -> Iterator[None]:
    """A line that says what is done, and then how long it took."""
    print(f"{what} ... ", end="", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def install(python: str, *arguments: str) -> None:
    uv = shutil.which("uv")
    installer = (uv, "pip", "install", "--python", python) if uv else (python, "-m", "pip", "install")
    run(*installer, "--quiet", *([] if uv else ["--disable-pip-version-check"]), *arguments)


def installed(python: str, name: str) -> str:
    """The version of a distribution, empty where ``python`` does not have it."""
    code = f"import importlib.metadata as m; print(*[d.version for d in m.distributions(name={name!r})][:1])"
    return output(python, code)


def complete(python: str, extra: str, *constraints: str) -> None:
    """Installs what ``python`` lacks of an extra; its torch stays as it is."""
    with tempfile.TemporaryDirectory() as folder, step(f"requirements of [{extra}]"):
        file = Path(folder, "constraints.txt")
        file.write_text("\n".join([f"torch=={installed(python, 'torch')}", *constraints]), encoding="utf-8")
        install(python, "--constraint", str(file), *requirements(extra))


def environment(folder: Path, torch: str) -> str:
    """Makes an environment with a torch where it is not there; returns its interpreter."""
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        with step(f"making {folder.relative_to(ROOT)}"):
            uv = shutil.which("uv")
            run(
                *((uv, "venv", "--quiet", "--python", sys.executable) if uv else (sys.executable, "-m", "venv")),
                str(folder),
            )
    if not installed(python, "torch"):
        with step(f"{torch} and what builds the extension"):
            install(python, "--upgrade", *BUILD, torch)
    return python


def prepare_venv(extras: list[str]) -> None:
    python = environment(ROOT / ".venv", TORCH)
    # the sources are the package: an installation, editable or not, would compile everything on each change
    packages = output(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    Path(packages, "bcos_kernels_sources.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    for extra in extras:
        complete(python, extra, TRITON)


def prepare_given(python: str, extras: list[str]) -> None:
    try:
        output(python, "import importlib.metadata as m, torch, setuptools; m.version('torch')")
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"BCOS_PYTHON={python}: must be an interpreter that can import torch and setuptools")
    for extra in extras:
        try:
            complete(python, extra)
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


def main(python: str = "", *extras: str) -> None:
    if sys.version_info < OLDEST:
        newer = newer_interpreter()
        if newer is None:
            sys.exit("Python 3.10 or newer is needed: the interpreters found here are older")
        os.execvp(newer, [newer, __file__, python, *extras])
    try:
        prepare_given(python, list(extras)) if python else prepare_venv(list(extras))
    except subprocess.CalledProcessError as error:
        sys.exit(f"set-up failed: {' '.join(map(str, error.cmd))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
