"""What the demo and the benchmarks measure with: times of contenders in turns, and the bytes that autograd saves."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor

__all__ = [
    "flushing_subnormals", "geomean", "interleave", "keep_pages_warm", "ratio", "release_pages", "saved_bytes",
    "summarise", "uncollected", "wall_clock",
]  # fmt: skip

Name = TypeVar("Name")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
WARM_UP = 2


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds until ``call`` returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[Name, Callable[[], object]],
    seconds: float,
    least: int = 5,
    most: int = 200,
    clock: Callable[[Callable[[], object]], float] = wall_clock,
    warm_up: int = WARM_UP,
) -> dict[Name, list[float]]:
    """Times all calls in turns, so that whatever slows the machine slows all of them.

    Returns the seconds of each call in each round, measured by ``clock``: ``least`` to ``most`` rounds, about
    ``seconds`` in all, after ``warm_up`` calls of each. Every round starts with another call, so that none is always
    the first.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    names = list(calls)
    times: dict[Name, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(calls[name]))
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of the two times of each round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def summarise(samples: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and number of the samples."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "p50": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
        "n": len(ordered),
    }


geomean = statistics.geometric_mean


def saved_bytes(call: Callable[[], object], excluded: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward of the result of ``call``.

    Storages of the tensors in ``excluded``, typically the parameters, exist without autograd too and do not count.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output itself would hold the graph that holds it, which nothing frees

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()  # alive until the sum is taken: the address of a freed storage could be used again
    for tensor in excluded:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(kept.values())
    del result
    return total


def keep_pages_warm() -> bool:
    """Makes glibc's malloc reuse freed pages, so that no contender pays page faults for large outputs.

    Returns False with another C library; times then include page faults, for every contender alike.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1


def release_pages() -> None:
    """Returns the pages that :func:`keep_pages_warm` keeps to the system: over a long run they would add up."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the context Python collects no garbage: what is freed there was in use there."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def flushing_subnormals() -> Iterator[None]:
    """Within the context numbers below the smallest normal one count as 0 on a CPU.

    Gradients of gradients of networks with random weights are full of them, those of trained networks are not, and a
    CPU takes a hundred times as long for each. Threads that exist already do not follow: enter it first.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
