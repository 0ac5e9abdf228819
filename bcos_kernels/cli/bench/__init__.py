"""``python -m bcos_kernels bench``: times of B-cos layers and models beside those of plain and reference ones.

A run stores one file of rows. ``bench report`` makes tables and pictures of it, ``bench compare`` finds what changed
between two runs. The modules, each of which imports only earlier ones: ``workloads``, ``devices``, ``results`` and
``stored`` (what is read of results, and how they are written); ``contenders``; ``layers``, ``models`` and ``coda``, the
measures of each; ``rows``, ``settings``, ``tasks``; for stored results ``noise``, ``tables``, ``console``, ``render``,
``plots``, ``page``, ``report``, ``compare``; and ``host``, ``show``, ``run``.
"""

from __future__ import annotations

import argparse

from .. import Command

__all__ = ["configure", "main"]


def configure(parser: Command) -> None:
    from . import settings

    parser.usage = "%(prog)s [options]\n       %(prog)s (report | compare) ..."
    parser.description = "Times B-cos layers and whole models beside plain and reference ones, in turns in one loop."
    settings.configure(parser)
    commands = parser.add_subparsers(title="commands for stored results", metavar="COMMAND", prog=parser.prog)
    commands.add_parser("report", help="make tables and pictures of results").module = ".bench.report"
    commands.add_parser("compare", help="find what got slower or faster between two runs").module = ".bench.compare"


def main(options: argparse.Namespace) -> int:
    """Measures and returns the exit status."""
    from .run import main

    return main(options)
