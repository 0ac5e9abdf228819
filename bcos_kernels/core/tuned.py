"""The choices that ``tune`` measured: one JSON file, read once, whose keys are device, versions and call.

The file is ``~/.cache/bcos_kernels/choices.json`` unless ``BCOS_KERNELS_CACHE`` names another one.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from . import env
from .candidate import Tile

__all__ = ["PATH", "delete", "device", "find", "forget", "key", "read", "store", "tile"]

SCHEMA = 3
PATH = env.CACHE
CURE = "delete it, or set BCOS_KERNELS_CACHE to another file"


def device(index: int | None = None) -> str:
    """What a measurement is valid for: a GPU of this name, or the interpreter, and the versions of torch and Triton.

    None is the current GPU.
    """
    name = torch.cuda.get_device_name(index) if torch.cuda.is_available() and not env.INTERPRETED else "interpreter"
    return f"{name}, torch {torch.__version__}, triton {_triton()}"


@cache
def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version  # imported here because it is slow to import

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def key(call, direction: str) -> str:
    """The key of one direction of a call, the same in every process; the architecture is part of :func:`device`."""
    return f"{direction} {call.words()}".replace("torch.", "")


def tile(stored: dict) -> Tile | None:
    """The tile of a stored choice."""
    return Tile(*stored["tile"]) if stored["tile"] else None


def read() -> dict[str, dict[str, dict]]:
    """All stored choices, ``{device: {key: choice}}``, without malformed entries.

    Raises:
        ValueError: the file cannot be read, or is not a file of choices.
    """
    try:
        stored = json.loads(PATH.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{PATH} cannot be read as a file of choices ({error}): {CURE}") from None
    devices = stored.get("devices") if isinstance(stored, dict) and stored.get("schema") == SCHEMA else None
    if not isinstance(devices, dict) or not all(isinstance(known, dict) for known in devices.values()):
        raise ValueError(f"{PATH} is not a file of choices of schema {SCHEMA}: {CURE}")
    return {name: {call: c for call, c in known.items() if _is_choice(c)} for name, known in devices.items()}


def find(call, direction: str) -> dict[str, dict] | None:
    """The fastest way of each backend to serve a call that was tuned on a GPU like its own; None for any other call.

    ``{backend: {"candidate": str, "tile": [m, n, k, warps, stages] | None, "seconds": {candidate: float}}}``
    """
    stored = _readable()
    known = stored and stored.get(device(call.index))
    return known.get(key(call, direction)) if known else None


@cache
def _readable() -> dict[str, dict[str, dict]]:
    try:
        return read()
    except ValueError as error:
        warnings.warn(f"{error}. Until then kernels are chosen by prediction.", stacklevel=2)
        return {}


def _is_choice(stored) -> bool:
    return isinstance(stored, dict) and bool(stored) and all(map(_is_way, stored.values()))


def _is_way(stored) -> bool:
    match stored:
        case {"candidate": str(name), "tile": None | [int(), int(), int(), int(), int()], "seconds": dict(seconds)}:
            return name in seconds and all(isinstance(time, float) for time in seconds.values())
    return False


def store(measured: dict[str, dict], index: int | None = None) -> None:
    """Adds choices for a GPU, ``{key: choice}``; None is the current one.

    Raises:
        ValueError: the file cannot be read, see :func:`read`; it stays as it is.
        OSError: the file cannot be written.
    """
    with _changing() as devices:
        devices.setdefault(device(index), {}).update(measured)


def delete() -> int:
    """Deletes the choices for this device and returns how many there were; the errors are those of :func:`store`."""
    with _changing() as devices:
        return len(devices.pop(device(), {}))


@contextmanager
def _changing() -> Iterator[dict[str, dict[str, dict]]]:
    """Yields all stored choices and stores them, as changed, afterwards.

    Other writers wait meanwhile, and readers see either all of the change or nothing of it.
    """
    try:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock  # imported here because most processes never store a choice

        with FileLock(PATH.with_suffix(".lock")):
            devices = read()
            yield devices
            draft = PATH.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps({"schema": SCHEMA, "devices": devices}, indent=1), encoding="utf-8")
            draft.replace(PATH)
    except OSError as error:
        raise OSError(f"{PATH} cannot be written ({error}): set BCOS_KERNELS_CACHE to a writable file") from None
    forget()


def forget() -> None:
    """Makes the next :func:`find` read the file again."""
    _readable.cache_clear()
