"""The choices that tuning measured: one JSON file, read once, keyed by device, versions and call.

``BCOS_KERNELS_CACHE`` names another file than ``~/.cache/bcos_kernels/choices.json``.
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


def device() -> str:
    """What a measurement holds for: the current GPU, or the interpreter, and everything that compiles for it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and not env.INTERPRETED else "interpreter"
    return f"{name}, torch {torch.__version__}, triton {_triton()}"


@cache
def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def key(call, direction: str) -> str:
    """A call in words, the same in every run; the device says the architecture."""
    return f"{direction} {call.words()}".replace("torch.", "")


def tile(stored: dict) -> Tile | None:
    """The tile of a stored choice."""
    return Tile(*stored["tile"]) if stored["tile"] else None


def read() -> dict[str, dict[str, dict]]:
    """Every choice stored, ``{device: {key: choice}}``; an entry that is none is left out.

    Raises:
        ValueError: the file cannot be read, or is not one of this package's.
    """
    try:
        stored = json.loads(PATH.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{PATH} cannot be read as a file of choices ({error}): {CURE}") from None
    devices = stored.get("devices") if isinstance(stored, dict) and stored.get("schema") == SCHEMA else None
    if not isinstance(devices, dict) or not all(isinstance(known, dict) for known in devices.values()):
        raise ValueError(f"{PATH} is no file of choices of schema {SCHEMA}: {CURE}")
    return {name: {call: c for call, c in known.items() if _is_choice(c)} for name, known in devices.items()}


def find(call, direction: str) -> dict[str, dict] | None:
    """What each backend does best in a call that was tuned on this device, else None.

    ``{backend: {"candidate": str, "tile": [m, n, k, warps, stages] | None, "seconds": {candidate: float}}}``
    """
    stored = _readable()
    known = stored and stored.get(device())
    return known.get(key(call, direction)) if known else None


@cache
def _readable() -> dict[str, dict[str, dict]]:
    try:
        return read()
    except ValueError as error:
        warnings.warn(f"{error}. Until then the choice of kernels is predicted.", stacklevel=2)
        return {}


def _is_choice(stored) -> bool:
    return isinstance(stored, dict) and bool(stored) and all(map(_is_way, stored.values()))


def _is_way(stored) -> bool:
    match stored:
        case {"candidate": str(name), "tile": None | [int(), int(), int(), int(), int()], "seconds": dict(seconds)}:
            return name in seconds and all(isinstance(time, float) for time in seconds.values())
    return False


def store(measured: dict[str, dict]) -> None:
    """Adds choices of this device, ``{key: choice}``.

    Raises:
        ValueError: the file cannot be read, see :func:`read`; it is left as it is.
        OSError: the file cannot be written.
    """
    with _changing() as devices:
        devices.setdefault(device(), {}).update(measured)


def delete() -> int:
    """Deletes the choices of this device and returns how many there were; raises as :func:`store` does."""
    with _changing() as devices:
        return len(devices.pop(device(), {}))


@contextmanager
def _changing() -> Iterator[dict[str, dict[str, dict]]]:
    """What is stored, to be changed within the context: other writers wait, and readers see all of it or nothing."""
    try:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock  # not with the package: most never store a choice

        with FileLock(PATH.with_suffix(".lock")):
            devices = read()
            yield devices
            draft = PATH.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps({"schema": SCHEMA, "devices": devices}, indent=1), encoding="utf-8")
            draft.replace(PATH)
    except OSError as error:
        raise OSError(f"{PATH} cannot be written ({error}): set BCOS_KERNELS_CACHE to a file that can") from None
    forget()


def forget() -> None:
    """Forgets what was read of the file."""
    _readable.cache_clear()
