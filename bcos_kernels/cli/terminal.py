"""What the commands share: arguments that name a model and its input, and printing under any locale."""

from __future__ import annotations

import argparse
import codecs
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import compat

__all__ = [
    "DTYPES", "EXTRA", "add_factory", "at_least", "draft_of", "entry_point", "factory", "installing", "json_object",
    "module_of", "printable", "refused", "shape", "unwritable",
]  # fmt: skip

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def shape(text: str) -> tuple[int, ...]:
    """``"256,6,224,224"`` as sizes, for argparse."""
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split(","))
    if 0 in sizes:
        raise argparse.ArgumentTypeError(f"{text!r}: positive sizes are needed, as in 256,6,224,224")
    return sizes


def at_least(least: float, kind: type = int) -> Callable[[str], Any]:
    """Numbers of this kind from ``least`` on, for argparse."""

    def number(text: str):
        value = kind(text)
        if not value >= least:  # also when it is NaN
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    number.__name__ = kind.__name__  # of which argparse says that a value is invalid
    return number


def json_object(text: str) -> dict:
    """A JSON object, for argparse."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""{text!r}: a JSON object is needed, as in '{{"num_classes": 10}}'""")
    return value


def add_factory(parser: Any, option: str, what: str) -> None:
    """Adds the option that names a callable, and ``--factory-args``, to a parser or a group of one."""
    parser.add_argument(option, metavar="PKG.MODULE:FACTORY", help=what)
    told = "arguments of this callable, by name"
    parser.add_argument("--factory-args", metavar="JSON", type=json_object, default={}, help=told)


class CodeError(ValueError):
    """The user's own code failed: its cause says where, and :func:`refused` shows it with its traceback."""

    def __init__(self, source: str, error: Exception) -> None:
        """``source`` is the option that names the code, and its value."""
        super().__init__(f"{source}: {type(error).__name__}: {error}")


def factory(option: str, name: str) -> Callable:
    """The callable ``factory`` of ``name``, which reads ``pkg.module:factory``.

    Raises:
        ImportError: the module cannot be imported.
        ValueError: ``name`` reads otherwise, or the module has no such attribute.
        TypeError: the attribute cannot be called.
        CodeError: the module raises another error.

    Each message begins with ``option``.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{option} {name}: pkg.module:factory is needed")
    compat.declare_torchvision_operators_when_needed()
    if os.getcwd() not in sys.path:  # the console script's path lacks it, and that of ``python -m`` begins with it
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{option} {name}: {error}") from error
    except Exception as error:
        raise CodeError(f"{option} {name}", error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{option} {name}: {module} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{option} {name}: {attribute} is {type(found).__name__}, not callable")
    return found


def entry_point(name: str) -> Callable[..., Any]:
    """The function of ``bcos.models.pretrained`` with this name. Raises ImportError if it needs a missing package."""
    compat.import_reference()
    if "vit" in name:
        importlib.import_module("einops")  # without it the function would raise an error of another class
    return getattr(importlib.import_module("bcos.models.pretrained"), name)


def module_of(source: str, build: Callable, arguments: dict[str, Any]) -> nn.Module:
    """What a callable of the user's returns, called with arguments of ``--factory-args``.

    Raises:
        TypeError: it does not take these arguments, or returns no module. The message begins with ``source``, the
            option that names the callable, and its value.
        ImportError, OSError: as the callable raises them; they name what is missing.
        CodeError: the callable raises another error.
    """
    try:
        made = build(**arguments)
    except (ImportError, OSError):
        raise
    except Exception as error:
        steps = traceback.extract_tb(error.__traceback__)
        if isinstance(error, TypeError) and len(steps) == 1:  # the call itself, which the callable does not take
            raise TypeError(f"{source} with --factory-args {json.dumps(arguments)}: {error}") from error
        raise CodeError(source, error) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"{source} returned {type(made).__name__}, not a torch.nn.Module")
    return made


def unwritable(path: Path) -> str:
    """Why no file can be written there; empty where one can. Asked before a command starts its work."""
    folder = path.absolute().parent
    if path.is_dir():
        return "it is a folder"
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"nothing can be written in the folder {folder}"


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` at the end, and is gone after an error: no file is ever there in part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink()


EXTRA = ("PIL", "bcos", "einops", "matplotlib", "numpy", "rich", "torchvision")
"""What the extra ``explain`` installs, beside which torch is the only dependency."""


def installing(extra: str) -> str:
    """The command that installs an extra; without the version pip would replace torch where torchvision is missing."""
    return f"pip install 'bcos_kernels[{extra}]' torch=={torch.__version__.partition('+')[0]}"


def refused(command: str, reason: Exception | str) -> int:
    """Says in one line on stderr why a command does not do what it was asked for; returns its exit status.

    An error of the user's own code is shown with its traceback first. That stdout was closed is no reason: its error is
    raised again, and :func:`printable` ends the command.
    """
    if isinstance(reason, BrokenPipeError):
        raise reason
    if isinstance(reason, CodeError):
        traceback.print_exception(reason.__cause__)
    if isinstance(reason, ModuleNotFoundError) and reason.name in EXTRA:
        reason = f"needs {reason.name}, not installed here: {installing('explain')}"
    print(f"bcos_kernels {command}: {' '.join(str(reason).split())}", file=sys.stderr)
    return 2


SPELT = {"÷": "/", "≤": "<=", "≥": ">=", "×": "x", "²": "^2", "µ": "u", "–": "-", "…": "..."}
"""What is printed for characters that an encoding lacks; every other one becomes a question mark."""
PIPE_CLOSED = 128 + 13  # the status by which a shell reports that SIGPIPE ended a process


def _spelt(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELT.get(c, "?") for c in error.object[error.start : error.end]), error.end


def printable(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Makes ``command`` print under any locale, and end quietly where its reader has ended (``doctor | head -1``)."""

    def wrapped(options: argparse.Namespace) -> int:
        codecs.register_error("bcos_kernels.spelt", _spelt)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # it was closed before the interpreter started (``doctor >&-``)
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
            elif hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="bcos_kernels.spelt")
        try:
            status = command(options)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
            )  # the interpreter flushes stdout again at its end
            return PIPE_CLOSED
        return status

    return wrapped
