"""The command line: ``bcos-kernels``, or ``python -m bcos_kernels``, with a command.

Each command is a module with ``configure(parser)``, which adds its arguments, and ``main(options)``, which returns the
exit status. It is imported when its command is used, so that no command pays for the imports of another.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import NoReturn

from .. import __version__

__all__ = ["main"]

SCRIPT = "bcos-kernels"
"""The name of the console script."""
INTERRUPTED = 128 + 2  # the status by which a shell reports that SIGINT ended a process
COMMANDS = {
    "doctor": "show what is built, which backend serves which calls, and why",
    "demo": "compare reference models on real images with accelerated ones",
    "run": "run a script and accelerate the B-cos modules that it builds",
    "explain": "explain folders of images, tars or data sets, in one process or many",
    "evaluate": "measure how well explanations localise: GridPG and EPG",
    "bench": "time layers and models beside plain and reference ones",
    "tune": "measure which GPU kernels serve the calls of a model best",
}


class Command(argparse.ArgumentParser):
    """The parser of one command, which reports unknown arguments under its own name, and every error in one line.

    ``module`` is the command's module; it is imported when the parser is first used. Options are not abbreviated: those
    of a script or of a subcommand would be ambiguous with the command's own.
    """

    module: str | None = None

    def __init__(self, **options) -> None:
        super().__init__(**options, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        if self.module is not None:
            command, self.module = importlib.import_module(self.module, __name__), None
            self.set_defaults(command=command.main, error=self.error)
            command.configure(self)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit status of the process; wrong arguments raise SystemExit with status 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Command(
        prog=SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m bcos_kernels",
        description="Fused kernels for B-cos networks.",
        epilog="Each command shows its own options: %(prog)s <command> --help",
    )
    parser.add_argument("--version", action="version", version=f"bcos_kernels {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True, parser_class=Command)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text).module = f".{name}"
    try:
        options = parser.parse_args(argv, argparse.Namespace(argv=argv))
        from .terminal import printable

        return printable(options.command)(options)
    except ModuleNotFoundError as error:
        from .terminal import EXTRA, refused

        if error.name not in EXTRA or argv[:1] == ["run"]:
            raise
        return refused(argv[0], error)
    except KeyboardInterrupt:
        if argv[:1] == ["run"]:  # it is the script's, as in plain Python
            raise
        print(f"bcos_kernels {argv[0]}: interrupted", file=sys.stderr)
        return INTERRUPTED
