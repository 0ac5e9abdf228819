"""Functions that the Triton kernels of several ops call."""

import triton
import triton.language as tl

from .rounding import INTERPRETED


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, accumulated in fp32."""
    if INTERPRETED:  # the interpreter's product of half-precision tiles is wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def safe_inverse(v):
    """1/v, or 0 where v = 0, so that a zero patch or a zero filter does not yield NaN."""
    zero = v == 0
    return tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, v))


@triton.jit
def all_finite(v):
    """Whether no value of a tile is infinite or NaN."""
    return tl.min((tl.abs(v) < float("inf")).to(tl.int32)) == 1


@triton.jit
def pixel(index, height, width):
    """The (image, row, column) of the pixel with this index."""
    rows = index // width
    return (rows // height).to(tl.int64), rows % height, index % width
