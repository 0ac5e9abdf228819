"""The file of a result: its header, its place, and how it is written."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .. import __version__

__all__ = [
    "ROOT",
    "commit",
    "default_path",
    "has_curves",
    "header",
    "is_complete",
    "partial_path",
    "rates",
    "store",
    "unfinished",
]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where the package is used from one."""


def default_path(device: str, selection: str = "") -> Path:
    """Where a run on ``device`` is stored: in a checkout's results, else in a folder of the working directory.

    ``selection`` names what a narrower run consists of, so that it never takes the place of a complete one.
    """
    checkout = ROOT / "benchmarks" / "results"
    folder = checkout if checkout.is_dir() else Path("bcos_kernels_bench")
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"
    return folder / f"{name}{f'-{selection}' if selection else ''}.json"


def partial_path(path: Path) -> Path:
    """Where an unfinished run is stored while ``path`` holds a complete one."""
    return path.with_name(f"{path.stem}-partial{path.suffix}")


def is_complete(path: Path) -> bool:
    """Whether ``path`` holds the result of a run that measured all it was to."""
    return _read(path).get("complete") is True


def has_curves(path: Path) -> bool:
    """Whether ``path`` holds scaling curves."""
    return any(row.get("scaling") for row in _read(path).get("rows", ()))


def rates(path: Path) -> dict[str, float]:
    """The device's rates in a complete result; empty where ``path`` holds none."""
    return (_read(path).get("rates") or {}) if is_complete(path) else {}


def unfinished(path: Path, machine: dict, settings: dict) -> dict:
    """The result of a run that left something out, under these conditions; ValueError where ``path`` holds none."""
    earlier = _read(path)
    if not earlier.get("not_measured") or earlier.get("complete"):
        raise ValueError(f"--resume {path}: a result is needed that has left something out")
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
    """The commit that is checked out, with ``+changes`` where files differ.

    Outside of a checkout what ``BCOS_KERNELS_COMMIT`` says of a copy, or None.
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


def header(command: str, machine: dict, settings: dict, packages: tuple[str, ...] = ()) -> dict:
    """Everything beside the figures; ``packages`` are named with their versions, None for what is not installed."""
    versions = {"bcos_kernels": __version__, "torch": torch.__version__}
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
        "command": command.strip(),
        "settings": settings,
        "complete": False,
    }


def store(result: dict, path: Path) -> None:
    """Replaces the file in one step, so that an interruption never leaves half of one; lists of numbers on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    text = json.dumps(result, indent=1)
    text = re.sub(
        r"\[[\s\d.,eE+-]+\]", lambda numbers: "[" + ", ".join(numbers[0][1:-1].replace(",", " ").split()) + "]", text
    )
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
