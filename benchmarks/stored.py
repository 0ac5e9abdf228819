"""The file of a result: its header and how it is written."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import bcos_kernels

__all__ = ["RESULTS", "ROOT", "commit", "header", "store"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str | None:
    """The commit that is checked out, with ``+changes`` where files differ; None outside of a repository."""
    git = ("git", "-C", str(ROOT))
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if changed.strip() else "")


def header(command: str, machine: dict, settings: dict, packages: tuple[str, ...] = ()) -> dict:
    """Everything beside the figures; ``packages`` are named with their versions, None for what is not installed."""
    versions = {"bcos_kernels": bcos_kernels.__version__, "torch": torch.__version__}
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
    """Replaces the file in one step, so that an interruption never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
