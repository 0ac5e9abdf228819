"""The command line: ``python -m bcos_kernels bench | demo | doctor | run | tune``."""

from __future__ import annotations

import argparse
import sys

from .commandline import printable

USAGE = {
    "doctor": "what is built, which backend serves what, and why not the others",
    "demo": "reference models on real images, as they are and accelerated",
    "run": "runs a script with its B-cos layers accelerated as they are built",
    "bench": "times layers and whole models beside the plain and the reference ones; bench report, bench compare",
    "tune": "measures which GPU kernels serve a model's calls best, once for every later run",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns the exit code of the process."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m bcos_kernels",
        description="Fused kernels for B-cos networks.",
        epilog="\n".join(f"{name:<8}{text}" for name, text in USAGE.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=USAGE, help="the command; its own options follow, see <command> --help")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.command == "doctor":
        from .doctor import main as command
    elif options.command == "demo":
        from .demo import main as command
    elif options.command == "bench":
        from .bench import main as command
    elif options.command == "tune":
        from .tuning import main as command
    else:
        from .run import main as command
    if options.command != "run":  # a script's own output stays as Python prints it
        command = printable(command)
    return command(options.arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
