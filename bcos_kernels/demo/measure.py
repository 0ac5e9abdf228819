"""Measurements that the demo and the benchmarks share: paired times and bytes saved for backward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["alternate", "paired_ratio", "saved_bytes"]


def alternate(calls: Sequence[Callable[[], object]], turn: int) -> list[tuple[object, float]]:
    """``(result, seconds)`` of each call, in order; odd turns run them in reverse: none is always first."""
    outcomes: dict[int, tuple[object, float]] = {}
    order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
    for i in order:
        start = time.perf_counter()
        result = calls[i]()
        outcomes[i] = result, time.perf_counter() - start
    return [outcomes[i] for i in range(len(calls))]


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of times that were measured next to each other: what slows both down cancels."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def saved_bytes(call: Callable[[], object], excluded: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward of what ``call`` returns.

    Storages of the tensors in ``excluded``, typically the parameters, are there anyway and do not count.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()  # alive until the sum is taken: a freed storage's address could be used again
    for tensor in excluded:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    total = sum(kept.values())
    del result
    return total
