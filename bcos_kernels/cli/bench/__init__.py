"""``python -m bcos_kernels bench``: B-cos layers and models timed beside the plain and the reference ones.

A run stores one file of rows; ``bench report`` makes tables and pictures of it, ``bench compare`` finds what changed
between two. Modules, from the ground up: ``timing``, ``devices``, ``stored``; ``workloads``; ``contenders``;
``layers`` and ``models``, what is measured of each; ``rows``; ``settings``, ``tasks``, ``run``; and for what is stored
``results``, ``noise``, ``tables``, ``plots``, ``page``, ``report``, ``compare``.
"""

from __future__ import annotations

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Measures, or passes on to ``report`` or ``compare``; returns the exit status."""
    if argv[:1] == ["report"]:
        from .report import main as command
    elif argv[:1] == ["compare"]:
        from .compare import main as command
    else:
        from .run import main as command

        return command(argv)
    return command(argv[1:])
