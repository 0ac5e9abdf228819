"""One module per backend; each answers ``why_not(call) -> list[str]``, empty when it serves the call."""

from __future__ import annotations

import torch

from ..spec import Call

__all__ = ["unserved"]


def unserved(call: Call, dtypes: tuple[torch.dtype, ...]) -> list[str]:
    """What no kernel of ours serves, whatever its backend; ``dtypes`` are those of the backend."""
    found = []
    if call.dtype not in dtypes:
        found.append(f"dtype {call.dtype} is none of {', '.join(map(str, dtypes))}")
    elif call.weight_dtype not in (call.dtype, torch.float32):
        found.append(f"weight dtype {call.weight_dtype} beside input dtype {call.dtype}")
    if call.spec.max_out > 255:
        found.append(f"max_out={call.spec.max_out} is above 255, the largest winner index kept")
    if not call.zero_padded:
        found.append("the padding mode is not 'zeros': the patch norm sees another input than the convolution")
    return found
