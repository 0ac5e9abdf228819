"""What a process of a job does after its import of torch. A job is all processes that one ``run`` command starts."""

from __future__ import annotations

from contextlib import ExitStack

from .. import compat, tally
from ..adopt import accelerate_as_built

__all__ = ["join"]

_until_the_end = ExitStack()


def join(folder: str) -> None:
    """Accelerates every layer, norm, attention and gate that is built from now on, and counts it in ``folder``."""
    compat.declare_torchvision_operators_when_needed()
    tally.keep(folder)
    _until_the_end.enter_context(accelerate_as_built())
