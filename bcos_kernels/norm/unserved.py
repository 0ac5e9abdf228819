"""The calls that no backend of GPU kernels serves."""

from __future__ import annotations

import torch

from ..core import dispatch
from .call import Call

__all__ = ["unserved"]


def unserved(call: Call, dtypes: tuple[torch.dtype, ...], most_positions: int) -> list[str]:
    """The reasons why a backend with these dtypes and at most this many positions cannot serve ``call``."""
    found = dispatch.other_dtype(call.dtype, dtypes)
    if call.batch * call.positions > most_positions:
        found.append(f"{call.batch * call.positions} positions of x are above {most_positions}, the largest index")
    if call.channels > most_positions:
        found.append(f"{call.channels} channels are above {most_positions}, the largest index")
    return found
