"""``python -m bcos_kernels run``: an unmodified script, the B-cos modules of all its processes accelerated.

The process becomes the interpreter that the user would have started without this command, so that everything
(process, signals, exit status, ``__main__``) is as in plain Python. The environment makes it and its children
accelerate: PYTHONPATH begins with the folder ``startup``, whose ``sitecustomize`` every interpreter reads.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from .terminal import refused

__all__ = ["STARTUP", "configure", "main"]

STARTUP = str(Path(__file__).parent / "startup")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--backend B] (script.py | -m module) args..."
    parser.description = (
        "Runs a Python script unmodified. Every B-cos layer, norm, attention and gate that becomes part of a module is "
        "accelerated, in the script's process and in those that it starts. A summary on stderr says what was done."
    )
    parser.add_argument(
        "--backend", type=_backend, metavar="B", help="the backend of every layer and norm; doctor lists them"
    )
    parser.add_argument("-m", dest="is_module", action="store_true", help="run a module instead of a script")
    parser.add_argument("target", nargs=argparse.REMAINDER, metavar="script.py args...", help="passed on as they are")


def main(options: argparse.Namespace) -> int:
    """Becomes the script or module; returns, with an exit status, only if that is impossible."""
    if not options.target:
        options.error("a script is needed: run [--backend B] script.py args... or run -m module args...")
    name = options.target[0]
    if options.is_module and not _module_exists(name):
        return refused("run", f"no module named {name!r}")
    if not options.is_module and not os.path.exists(name):
        return refused("run", f"no such script: {name}")
    if sys.flags.ignore_environment or sys.flags.no_site:
        return refused("run", "python's options -E, -I and -S keep a process from being accelerated: leave them out")
    try:
        environment = os.environ | _environment(options.backend)
    except OSError as error:
        return refused("run", f"the folder for the counts of the job's processes cannot be made: {error}")
    sys.stdout.flush()
    command = [sys.executable, *_interpreter_options(), *["-m"] * options.is_module, *options.target]
    os.execve(sys.executable, command, environment)


def _backend(name: str) -> str:
    from ..transform import TRANSFORM

    try:
        TRANSFORM.check_backend(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _module_exists(name: str) -> bool:
    """Whether the outermost package exists; looking further would import it, and only the script may do that."""
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _interpreter_options() -> list[str]:
    """The interpreter's options before ``-m bcos_kernels run``: -u, -O, -W error ..."""
    *before, last = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    if last == __package__.partition(".")[0] and before:  # it follows -m, or combined options that end with it, as -um
        before[-1] = before[-1].removesuffix("m")
    return [option for option in before if option != "-"]


def _environment(backend: str | None) -> dict[str, str]:
    """The variables that make every interpreter a member of a job: of the present one, if this process is a member."""
    environment = {"BCOS_KERNELS_BACKEND": backend} if backend else {}
    before = os.environ.get("PYTHONPATH")
    if not before or STARTUP not in before.split(os.pathsep):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (STARTUP, before)))
    folder = os.environ.get("BCOS_KERNELS_RUN", "").split(os.pathsep, 2)[-1]
    if not os.path.isdir(folder):
        job = (str(os.getpid()), sys.prefix, tempfile.mkdtemp(prefix="bcos_kernels-run-"))
        environment["BCOS_KERNELS_RUN"] = os.pathsep.join(job)
    return environment
