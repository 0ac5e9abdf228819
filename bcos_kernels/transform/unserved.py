"""The calls that no backend of kernels serves."""

from __future__ import annotations

import torch

from ..core import dispatch
from .call import Call

__all__ = ["unserved"]


def unserved(call: Call, dtypes: tuple[torch.dtype, ...], most_rows: int | None = None) -> list[str]:
    """The reasons why a backend with these dtypes and at most this many rows cannot serve ``call``."""
    found = dispatch.other_dtype(call.dtype, dtypes)
    if not found and call.weight_dtype not in (call.dtype, torch.float32):
        found.append(f"weight dtype {call.weight_dtype} does not go with input dtype {call.dtype}")
    if call.spec.max_out > 255:
        found.append(f"max_out={call.spec.max_out} is above 255, the largest number of filters that winner holds")
    if most_rows is not None and call.padded_rows > most_rows:
        found.append(f"{call.padded_rows} pixels × groups of the padded input are above {most_rows}, the largest index")
    return found
