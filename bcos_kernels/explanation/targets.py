"""Which rows of the dynamic linear map are explained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Rows", "Targets", "parse"]

ALLOWED = (
    "None, a class, classes [N] or [N, T], 'top5' or another number of classes, pairs [(image, class), ...], "
    "or directions [T, K] of a floating-point dtype"
)


@dataclass(frozen=True)
class Rows:
    """The rows of all images: T for each, of which a ragged choice uses some."""

    named: Tensor
    """What the caller gets as ``targets``."""
    count: int
    """T"""
    of_class: Tensor | None
    """``[N, T]`` int64: the class of each row, -1 where an image has fewer; None for directions."""
    directions: Tensor | None = None
    """``[T, K]``"""
    places: Tensor | None = None
    """Of pairs ``[P, 2]``: the image and the number of its row."""

    def gradients(self, logits: Tensor, first: int, last: int) -> Tensor:
        """The gradients at the logits ``[N, K]`` that give the rows from ``first`` to ``last``: ``[t, N, K]``."""
        images, classes = logits.shape
        if self.directions is not None:
            chosen = self.directions[first:last].to(logits.device, logits.dtype)
            return chosen[:, None].expand(-1, images, -1)
        assert self.of_class is not None
        chosen = self.of_class[:, first:last].to(logits.device).t()
        return F.one_hot(chosen + 1, classes + 1)[..., 1:].to(logits.dtype)


@dataclass(frozen=True)
class Targets:
    """The targets of a call, checked as far as it is possible before the number of classes is known."""

    given: Any
    top: int | None = None
    """How many of the largest logits are explained."""
    classes: Tensor | None = None
    """``[N, T]`` int64"""
    pairs: Tensor | None = None
    """``[P, 2]`` int64"""
    directions: Tensor | None = None

    def rows(self, logits: Tensor) -> Rows:
        """The rows, given the logits ``[N, K]``.

        Raises:
            ValueError: a class or the number of classes is not one of the model's, or a direction is not of length K.
        """
        images, count = logits.shape
        if self.directions is not None:
            if self.directions.shape[1] != count:
                shape = tuple(self.directions.shape)
                raise ValueError(f"targets: directions of shape {shape} were given, and the model has K={count} values")
            return Rows(self.directions.detach(), len(self.directions), None, self.directions)
        if self.top is not None:
            if self.top > count:
                raise ValueError(f"targets={self.given!r}: the model has {count} classes")
            best = logits.detach().topk(self.top).indices.cpu() if self.top > 1 else logits.detach().argmax(1)[:, None]
            return Rows(best, self.top, best)
        classes = self.classes if self.pairs is None else self.pairs[:, 1]
        assert classes is not None
        if classes.numel() and not int(classes.max()) < count:
            raise ValueError(f"targets: class {int(classes.max())} is out of range, the model has {count} classes")
        return Rows(classes, classes.shape[1], classes) if self.pairs is None else _of_pairs(self.pairs, images)


def _of_pairs(pairs: Tensor, images: int) -> Rows:
    """The rows of ``pairs``: those of an image stand in the order in which they are given."""
    image = pairs[:, 0]
    counts = torch.bincount(image, minlength=images)
    order = torch.argsort(image, stable=True)
    starts = counts.cumsum(0) - counts
    number = torch.empty_like(image)
    number[order] = torch.arange(len(image)) - starts[image[order]]
    of_class = torch.full((images, int(counts.max())), -1)
    of_class[image, number] = pairs[:, 1]
    return Rows(pairs, of_class.shape[1], of_class, places=torch.stack([image, number], 1))


def parse(targets: Any, images: int, keep_graph: bool = False) -> Targets:
    """The targets of ``images`` images. With ``keep_graph`` directions stay part of the graph that made them.

    Raises:
        TypeError, ValueError: ``targets`` is not as :func:`bcos_kernels.explain` describes it.
    """
    if targets is None:
        return Targets(None, top=1)
    if isinstance(targets, str):
        match = re.fullmatch(r"top([1-9]\d*)", targets)
        if match is None:
            raise ValueError(f"targets={targets!r}: allowed are {ALLOWED}")
        return Targets(targets, top=int(match[1]))
    if isinstance(targets, Sequence) and not targets:
        raise ValueError(f"targets={targets!r}: at least one row is needed")
    if isinstance(targets, Sequence) and all(isinstance(pair, tuple) for pair in targets):
        return Targets(targets, pairs=_pairs(targets, images))
    try:
        found = torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"targets={targets!r}: allowed are {ALLOWED}") from None
    if found.is_floating_point():
        if found.dim() != 2 or not found.numel():
            raise ValueError(f"targets: directions have shape {tuple(found.shape)}, allowed is [T, K]")
        given = targets if isinstance(targets, Tensor) else found
        return Targets(targets, directions=given if keep_graph else given.detach())
    return Targets(targets, classes=_classes(found, images))


def _pairs(targets: Sequence, images: int) -> Tensor:
    if not all(len(pair) == 2 and all(_is_index(i) for i in pair) for pair in targets):
        raise TypeError(f"targets={targets!r}: a list of tuples gives pairs (image, class) of two ints each")
    for image, chosen in targets:
        if not 0 <= image < images:
            raise ValueError(f"targets: image {image} of the pair ({image}, {chosen}) is not one of {images} images")
        if chosen < 0:
            raise ValueError(f"targets: class {chosen} of the pair ({image}, {chosen}) is below 0")
    return torch.tensor([[int(i) for i in pair] for pair in targets])


def _is_index(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__")


def _classes(found: Tensor, images: int) -> Tensor:
    """Classes ``[N, T]`` of one class, ``[N]`` or ``[N, T]``."""
    if found.dtype == torch.bool or found.is_complex():
        raise TypeError(f"targets has dtype {found.dtype}: allowed are {ALLOWED}")
    if found.dim() > 2 or (found.dim() and len(found) != images) or not found.numel():
        shape = tuple(found.shape)
        raise ValueError(f"targets has shape {shape}: for {images} images ({images},) and ({images}, T) are allowed")
    found = found.long()  # the unsigned dtypes of more than 8 bits have no minimum in torch
    if int(found.min()) < 0:
        raise ValueError(f"targets: class {int(found.min())} is below 0")
    return found.expand(images, 1) if found.dim() == 0 else found.view(images, -1)
