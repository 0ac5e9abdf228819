"""Which Triton kernels a test sees, by the GPU they are compiled for, and the processes that compile them.

A fixture ``kernels`` of module scope gets ``(GPU, whether the first case alone)``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from bcos_kernels.gpu.aot import ARCHITECTURES, Specialisation

__all__ = ["FIRST", "WHOLE", "examined", "of_every_gpu"]

WORKERS = 2
OTHERS = tuple(arch for arch in ARCHITECTURES if arch != "sm_90")
WHOLE = {
    "sm_90": pytest.param(("sm_90", False), id="sm_90"),
    **{arch: pytest.param((arch, False), id=arch, marks=pytest.mark.thorough) for arch in OTHERS},
}
"""GPU -> all its cases: in ``make test`` those of Hopper, in ``make thorough`` those of the others."""
FIRST = {arch: pytest.param((arch, True), id=f"{arch} first") for arch in OTHERS}
"""GPU -> its first case, in ``make test``."""
of_every_gpu = pytest.mark.parametrize("kernels", [*WHOLE.values(), *FIRST.values()], indirect=True)


def examined(examine: Callable[[Specialisation], object], chosen: Iterable[Specialisation]) -> list:
    """``examine(kernel)`` of each: in other processes, or in this one where pytest itself runs in several."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return list(map(examine, chosen))
    with ProcessPoolExecutor(min(WORKERS, os.cpu_count()), mp_context=get_context("spawn")) as pool:
        return list(pool.map(examine, chosen, chunksize=2))
