"""Rounding to a dtype, in Triton: the interpreter does it otherwise than a GPU."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def cast(v, dtype: tl.constexpr):
    """v in ``dtype``, rounded to nearest."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would truncate
        bits = v.to(tl.float32).to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        v = tl.where(v == v, rounded.to(tl.float32, bitcast=True), v)
    return v.to(dtype)
