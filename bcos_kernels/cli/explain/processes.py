"""The processes of a run that torchrun started: which one this is, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

__all__ = ["Processes", "connected"]

PATIENCE = timedelta(days=14)
"""How long a process waits for the slowest one."""


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def of_first(self, call: Callable[[], Any]) -> Any:
        """The result of ``call`` in the first process, in all of them; or the exception that it raised there."""
        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = call()
            except Exception as error:
                told[1] = error
        if self.count > 1:
            dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def wait(self) -> None:
        """Waits until every process is here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def connected() -> Iterator[Processes]:
    """A context with the processes that torchrun started, or with this one alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or not dist.is_available():
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()
