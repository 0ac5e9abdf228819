"""The passes of an explanation: one forward, and backwards that each form several rows of the dynamic linear map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import _torch
from .targets import Rows

__all__ = ["Found", "backward", "default_chunk", "form"]

SHARE = 0.25
"""The part of a GPU's free memory that a default chunk may take."""
LIVE = 6
"""How many gradients of the size of the largest activation are alive at once; DenseNets and residual networks measure
3 to 5."""
ENOUGH = 64
"""Images whose gradients fill a GPU: a default chunk does not grow beyond them."""
MAPPED = 2**25
"""The bytes from which malloc maps fresh pages for every tensor. On a CPU a default chunk keeps gradients below."""
FEW = 4
"""A backward of fewer rows takes longer than one backward for each, by what torch's vmap adds."""


@dataclass(frozen=True)
class Found:
    """The rows of the dynamic linear map, as the caller gets them."""

    weights: Tensor | None
    """``[N, T, *x]``, or ``[P, *x]`` for pairs; None where they were not asked for."""
    contributions: Tensor
    """The same without the dimension of the channels."""


def form(logits: Tensor, x: Tensor, rows: Rows, chunk: int | None, create_graph: bool, keep_weights: bool) -> Found:
    """Forms the rows: gradients of ``logits`` ``[N, K]`` with respect to ``x`` in the mode that the model has now."""
    chunk = default_chunk(logits, x, rows.count) if chunk is None else chunk
    kept = _Kept(x, rows, keep_weights, create_graph)
    for first in range(0, rows.count, chunk):
        last = min(first + chunk, rows.count)
        gradients = rows.gradients(logits, first, last)
        kept.add(first, last, backward(logits, x, gradients, create_graph, last < rows.count))
    return kept.found()


def backward(logits: Tensor, x: Tensor, gradients: Tensor, create_graph: bool, retain: bool) -> Tensor:
    """The rows ``[t, N, *x]`` of the gradients ``[t, N, K]`` at the logits, in one backward."""
    options = {"create_graph": create_graph, "retain_graph": retain or create_graph, "allow_unused": True}

    def of_one(gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(logits, x, gradient, **options)
        if found is None:
            raise ValueError("the explained output does not depend on the images: something between them is detached")
        return found

    if len(gradients) == 1:
        return of_one(gradients[0])[None]
    try:  # is_grads_batched of autograd.grad would take another vmap, which calls our operators once for each row
        return torch.func.vmap(of_one)(gradients)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of a compiled module, a checkpoint or an autograd Function without a rule for vmap
        rows, why = len(gradients), f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RuntimeError(
            f"the backward of {rows} rows at once failed ({why}): chunk=1 forms them one by one"
        ) from error


class _Kept:
    """Collects chunks of rows ``[t, N, *x]``."""

    def __init__(self, x: Tensor, rows: Rows, keep_weights: bool, create_graph: bool) -> None:
        self.x, self.rows, self.graph = (x if create_graph else x.detach()), rows, create_graph
        self.channels = {2: None, 3: -1}.get(x.dim(), 1)
        sizes = list(x.shape[1:])
        self.weights = self._fresh(sizes) if keep_weights else None
        if self.channels is not None:
            del sizes[0 if self.channels == 1 else -1]
        self.contributions = self._fresh(sizes)
        assert self.contributions is not None

    def _fresh(self, sizes: list[int]) -> list[Tensor]:
        """A tensor to fill, as a list of one; with a graph nothing is written in place, and the list grows."""
        if self.graph:
            return []
        places = self.rows.places
        lead = [len(self.x), self.rows.count] if places is None else [len(places)]
        return [self.x.new_empty(lead + sizes)]

    def add(self, first: int, last: int, found: Tensor) -> None:
        products = found * self.x
        summed = products if self.channels is None else products.sum(self.channels if self.channels < 0 else 2)
        for kept, new in ((self.weights, found), (self.contributions, summed)):
            if kept is None:
                continue
            if self.graph:
                kept.append(new)
            elif self.rows.places is None:
                kept[0][:, first:last] = new.transpose(0, 1)
            else:
                for pair, (image, number) in self._pairs(first, last):
                    kept[0][pair] = new[number - first, image]

    def _pairs(self, first: int, last: int) -> Iterator[tuple[int, tuple[int, int]]]:
        assert self.rows.places is not None
        for pair, (image, number) in enumerate(self.rows.places.tolist()):
            if first <= number < last:
                yield pair, (image, number)

    def found(self) -> Found:
        weights = None if self.weights is None else self._whole(self.weights)
        return Found(weights, self._whole(self.contributions))

    def _whole(self, kept: list[Tensor]) -> Tensor:
        if not self.graph:
            return kept[0]
        whole, places = torch.cat(kept).transpose(0, 1), self.rows.places
        return whole if places is None else whole[places[:, 0], places[:, 1]]


def default_chunk(logits: Tensor, x: Tensor, count: int) -> int:
    """How many of ``count`` rows one backward forms: as many as fill the device and fit into its memory."""
    of_one = _torch.largest_gradient(logits, x)
    if _on_cpu(x):
        fitting = min(count, MAPPED // of_one)
        return fitting if fitting >= FEW else 1
    fitting = int(SHARE * _free_bytes(x.device) / (LIVE * of_one))
    return max(1, min(count, fitting, -(-ENOUGH // len(x))))


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _free_bytes(device: torch.device) -> int:
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached
