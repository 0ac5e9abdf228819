"""Rows of the dynamic linear map through a norm: several gradients of every image as the gradients of more images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core.candidate import Backend
from .call import Call, is_channels_last
from .spec import Inputs, Outputs

__all__ = ["as_images", "taken"]

_OF_IMAGES = ("group", "position")  # what statistics are kept for each image


def taken(backend: Backend) -> Callable[[Call, int], bool]:
    """``takes_rows`` of a candidate of this backend whose backward uses :func:`as_images`.

    With a frozen variance dx of an image depends on the gradient at this image alone, except where a mean over all
    images is differentiated.
    """

    def takes_rows(call: Call, rows: int) -> bool:
        apart = call.given or not call.spec.centered or call.spec.over in _OF_IMAGES
        return apart and not backend.why_not(call.of_rows(rows))

    return takes_rows


def as_images(grad: Tensor, inputs: Inputs, saved: Outputs, call: Call) -> tuple[Inputs, Outputs, Call]:
    """Inputs, saved outputs and call of as many images as ``grad`` has, for a backward with a frozen variance.

    ``grad`` is ``[T·N, ...]``: T gradients of each of N images. With a frozen variance x has no value in dx, so that
    the gradient takes its place.
    """
    if len(grad) == call.batch:
        return inputs, saved, call
    rows = len(grad) // call.batch
    if call.spec.over in _OF_IMAGES:
        saved = saved._replace(mean=_repeated(saved.mean, rows), var=_repeated(saved.var, rows))
    call = replace(call.of_rows(rows), channels_last=is_channels_last(grad))
    return inputs._replace(x=grad.to(call.dtype)), saved, call


def _repeated(statistic: Tensor, rows: int) -> Tensor:
    return torch.cat([statistic] * rows)
