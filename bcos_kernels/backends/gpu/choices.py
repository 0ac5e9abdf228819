"""The choices that tuning measured: one JSON file, read once, keyed by device, versions and call.

``BCOS_KERNELS_CACHE`` names another file than ``~/.cache/bcos_kernels/choices.json``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch

from .device import INTERPRETED
from .problem import Problem

try:
    import fcntl
except ImportError:  # Windows: writers at the same time may lose each other's choices there
    fcntl = None

__all__ = ["PATH", "delete", "device", "find", "forget", "key", "read", "store"]

SCHEMA = 2
PATH = Path(
    os.path.expanduser(
        os.environ.get("BCOS_KERNELS_CACHE")
        or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bcos_kernels", "choices.json")
    )
)
CURE = "delete it, or set BCOS_KERNELS_CACHE to another file"


def device() -> str:
    """What a measurement holds for: the current GPU, or the interpreter, and everything that compiles for it."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() and not INTERPRETED else "interpreter"
    return f"{name}, torch {torch.__version__}, triton {_triton()}"


@cache
def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def key(p: Problem, direction: str) -> str:
    """A call in words, the same in every run; the device says the architecture."""
    values = (f"{f.name}={getattr(p, f.name)}" for f in fields(p) if f.name != "arch")
    return f"{direction} {' '.join(values)}".replace("torch.", "")


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


def find(p: Problem, direction: str) -> dict[str, dict] | None:
    """What each backend does best in a call that was tuned on this device, else None.

    ``{backend: {"candidate": str, "tile": [m, n, k, warps, stages] | None, "seconds": {candidate: float}}}``
    """
    stored = _readable()
    known = stored and stored.get(device())
    return known.get(key(p, direction)) if known else None


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
        with open(PATH.with_suffix(".lock"), "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
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
