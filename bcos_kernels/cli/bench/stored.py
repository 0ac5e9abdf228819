"""The file of a result: its header, its place, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ... import __version__
from ..terminal import draft_of

__all__ = ["ROOT", "commit", "default_path", "header", "is_complete", "partial_path", "store", "typed", "unfinished"]

ROOT = Path(__file__).resolve().parents[3]
"""The root of the checkout, if the package is used from one."""


def default_path(device: str, selection: str = "") -> Path:
    """The file of a run on ``device``: in the results of a checkout, else in a folder of the working directory.

    ``selection`` names a run that is not a complete one, so that it never replaces one.
    """
    checkout = ROOT / "benchmarks" / "results"
    folder = checkout if checkout.is_dir() else Path("bcos_kernels_bench")
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"
    return folder / f"{name}{f'-{selection}' if selection else ''}.json"


def partial_path(path: Path) -> Path:
    """The file of an unfinished run while ``path`` holds a complete one."""
    return path.with_name(f"{path.stem}-partial{path.suffix}")


def is_complete(path: Path) -> bool:
    """Whether ``path`` holds the result of a run that measured everything it was meant to."""
    return _read(path).get("complete") is True


def unfinished(path: Path, machine: dict, settings: dict) -> dict:
    """The result of an unfinished run under the same conditions; raises ValueError where ``path`` holds none."""
    earlier = _read(path)
    if not earlier.get("not_measured") or earlier.get("complete"):
        raise ValueError(f"--resume {path}: the result of an unfinished run is needed")
    for name, now in (("machine", machine), ("settings", settings)):
        now = json.loads(json.dumps(now))
        other = [key for key in now.keys() | earlier[name].keys() if now.get(key) != earlier[name].get(key)]
        if other:
            raise ValueError(f"--resume {path}: its {name} differ in {', '.join(sorted(other))}")
    return earlier


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def commit() -> str | None:
    """The commit that is checked out, followed by ``+changes`` where files differ from it.

    Outside of a checkout it is the value of ``BCOS_KERNELS_COMMIT``, or None.
    """
    told = os.environ.get("BCOS_KERNELS_COMMIT") or None
    if not (ROOT / ".git").exists():
        return told
    git = ("git", "-C", str(ROOT))
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return told
    return head.strip() + ("+changes" if changed.strip() else "")


def typed(program: str, argv: Iterable[str], *files: Path | None) -> str:
    """A command as a result tells it; of a file with a whole path the name alone, because the folders are a machine's.

    ``files`` are those that ``argv`` names.
    """
    words = [*program.split(), *argv]
    for file in files:
        if file is not None and file.is_absolute():
            words = [word.replace(str(file), file.name) for word in words]
    return shlex.join(words)


def header(command: str, machine: dict, settings: dict, packages: tuple[str, ...] = ()) -> dict:
    """Everything beside the figures, with the versions of ``packages`` (None for those that are not installed)."""
    versions: dict[str, str | None] = {"bcos_kernels": __version__, "torch": torch.__version__}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "versions": versions | {"python": platform.python_version()},
        "commit": commit(),
        "command": command,
        "settings": settings,
        "complete": False,
    }


def store(result: dict, path: Path) -> None:
    """Replaces the file in one step, so that an interruption leaves no half; each part and each row takes one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = (f"{json.dumps(name)}: {_lines(value)}" for name, value in result.items())
    with draft_of(path) as draft:
        draft.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _lines(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)
