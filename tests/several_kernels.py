"""Triton kernels compiled one after the other, in as many processes as there are for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bcos_kernels.gpu.aot import Specialisation

__all__ = ["examined"]

WORKERS = 2


def examined(examine: Callable[[Specialisation], object], chosen: Iterable[Specialisation]) -> list:
    """``examine(kernel)`` of each: in other processes, or in this one where pytest itself runs in several."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return list(map(examine, chosen))
    with ProcessPoolExecutor(min(WORKERS, os.cpu_count()), mp_context=get_context("spawn")) as pool:
        return list(pool.map(examine, chosen, chunksize=2))
