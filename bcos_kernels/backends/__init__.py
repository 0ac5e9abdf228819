"""One module per backend; each answers ``why_not(call) -> list[str]``, empty when it serves the call."""

from __future__ import annotations

from math import prod

import torch

from ..spec import Call

__all__ = ["most_rows", "unserved"]


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


def most_rows(call: Call) -> int:
    """The most rows that a kernel indexes: pixels × groups of the input, padding counted in."""
    if call.spec.is_linear:
        return prod(call.x_shape[:-1])
    batch, _, height, width = call.x_shape
    pads = call.spec.padding
    return batch * (height + 2 * pads[0]) * (width + 2 * pads[1]) * call.spec.groups
