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


@triton.jit
def to_tf32(v):
    """v in fp32, rounded to the nearest value of tf32, of two as near to the larger one, as the CUDA kernels round.

    A tensor core cuts off the bits that tf32 lacks: every product would be too small.
    """
    rounded = ((v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.where(v == v, rounded, v)
