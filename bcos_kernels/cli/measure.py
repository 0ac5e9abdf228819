"""Paired times: all contenders take turns in one loop, and a ratio is the median over pairs of neighbours."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

__all__ = ["geomean", "interleave", "keep_pages_warm", "ratios", "release_pages", "summarise", "wall_clock"]

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
WARM_UP = 2


def keep_pages_warm() -> bool:
    """Makes glibc's malloc reuse freed pages, so that no contender pays page faults for large outputs.

    Returns False where the C library is another; times then include page faults, for every contender alike.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1


def release_pages() -> None:
    """Gives the pages that :func:`keep_pages_warm` keeps back to the system: over a long run they would add up."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds until ``call`` returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: dict[str, Callable[[], object]],
    seconds: float,
    least: int = 5,
    most: int = 200,
    clock: Callable[[Callable[[], object]], float] = wall_clock,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Seconds of each call in each round by ``clock``, ``least`` to ``most`` rounds and about ``seconds`` in all.

    ``warm_up`` calls of each come before. Every round starts with another contender: none is always the first.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(calls[name]))
    return times


def summarise(samples: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and how many samples there were."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "p50": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
        "n": len(ordered),
    }


def ratios(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Summary of the ratios of the two times of each round."""
    return summarise([a / b for a, b in zip(numerator, denominator, strict=True)])


def geomean(values: list[float]) -> float:
    """Geometric mean of positive numbers."""
    return statistics.geometric_mean(values)
