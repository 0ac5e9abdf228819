"""What a process of a job does once it has imported torch; a job is all that one ``bcos_kernels run`` starts."""

from __future__ import annotations

from contextlib import ExitStack

from . import compat, tally
from .adopt import accelerate_as_built

__all__ = ["join"]

_until_the_end = ExitStack()


def join(folder: str) -> None:
    """From now on B-cos layers are accelerated as they are built, and counted in ``folder``."""
    compat.declare_torchvision_operators_when_needed()
    tally.keep(folder)
    _until_the_end.enter_context(accelerate_as_built())
