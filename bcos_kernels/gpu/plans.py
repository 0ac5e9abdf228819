"""The folder of the plans that cuDNN compiled, which the extension writes and reads (``csrc/common/cuda/cudnn``)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from ..core import env

__all__ = ["count", "delete", "is_private"]

HEAD = 8192  # bytes of a file in which the device is named


def is_private() -> bool:
    """Whether plans may be kept: the folder is not there yet, or this user's, and nobody else can write it."""
    try:
        facts = env.PLANS.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022


def count() -> int:
    """The number of stored plans, for whichever devices."""
    return sum(1 for _ in _files())


def delete(device: str) -> int:
    """Deletes the plans for GPUs of this name, of every version of cuDNN, and returns how many there were.

    Raises:
        OSError: one of them cannot be deleted.
    """
    deleted = 0
    for file in _files():
        with open(file, "rb") as stored:
            head = stored.read(HEAD)
        if f'"{device}"'.encode() in head:
            file.unlink()
            deleted += 1
    return deleted


def _files() -> Iterator[Path]:
    if is_private() and env.PLANS.is_dir():
        yield from (file for file in env.PLANS.iterdir() if re.fullmatch("[0-9a-f]{16}", file.name) and file.is_file())
