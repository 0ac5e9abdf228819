"""What the commands of this folder share: their parser, and the line that says what was run."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap

from bcos_kernels.cli.bench import stored

__all__ = ["Parser", "heading"]


class Parser(argparse.ArgumentParser):
    """The parser of a module whose documentation begins with ``python -m benchmarks.NAME ...`` and what that does."""

    def __init__(self, documentation: str) -> None:
        told = re.match(r"``(python -m [\w.]+).*?``: (.*)", documentation, re.DOTALL)
        assert told is not None
        text = re.sub(r"(:\w+:)?`+|[*]{2}", "", told[2])  # what marks up the documentation
        width = shutil.get_terminal_size().columns - 2
        parts = f"{text[0].upper()}{text[1:]}".split("\n\n")
        text = "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False) for part in parts)
        super().__init__(told[1], description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def parsed(self, argv: list[str] | None) -> argparse.Namespace:
        """The options, by default those of this process; ``command`` is the line that holds them."""
        argv = sys.argv[1:] if argv is None else argv
        options = self.parse_args(argv)
        options.command = stored.typed(self.prog, argv, getattr(options, "out", None))
        return options


def heading(result: dict) -> str:
    """The command, the commit and the versions in a result's header."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"`{result['command']}` at commit {(result['commit'] or 'unknown')[:10]}; {versions}."
