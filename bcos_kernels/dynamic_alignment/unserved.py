"""What no GPU kernel of dynamic alignment serves."""

from __future__ import annotations

import torch

from ..core import dispatch
from .call import Call

__all__ = ["takes_rows", "unserved"]

_MOST = 2**30  # leaves the end of the last tile an index of 32 bits


def unserved(call: Call, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """The reasons why GPU kernels of these dtypes do not serve ``call``, wherever it lies; empty where they do."""
    found = dispatch.other_dtype(call.dtype, dtypes)
    height, width = (size + 2 * p for size, p in zip(call.x_shape[2:], call.spec.padding, strict=True))
    counts = {
        "pixels": call.pixels, "rows of weight": call.patch * call.outputs, "values of rank": call.rank,
        "pixels of padded height": height, "pixels of padded width": width,
    }  # fmt: skip
    found += [f"{count} {name} are above {_MOST}, the largest index" for name, count in counts.items() if count > _MOST]
    return found


def takes_rows(call: Call, rows: int) -> bool:
    """Whether one backward takes so many rows of the dynamic linear map for every image."""
    return rows * call.pixels <= _MOST
