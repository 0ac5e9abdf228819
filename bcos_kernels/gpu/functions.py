"""Functions that the Triton kernels of several ops call."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .rounding import INTERPRETED, to_tf32


@triton.constexpr_function
def sums_of(dtype):
    """The dtype of sums over values of ``dtype``: fp64 for fp64, else fp32."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def widened(v):
    """v in the dtype of its sums."""
    return v.to(sums_of(v.dtype))


@triton.jit
def exact_root(v):
    """√v, rounded to nearest."""
    return tl.sqrt(v) if v.dtype == tl.float64 else tl.sqrt_rn(v)


@triton.jit
def exact_ratio(a, b):
    """a/b, rounded to nearest; a is a number or of the dtype of b."""
    return a / b if b.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def wide_power(c, e):
    """c^e in fp64."""
    e = tl.zeros(c.shape, tl.float64) + e
    return _interpreted_power(c, e) if INTERPRETED else libdevice.pow(c, e)


@triton.constexpr_function
def _interpreted_power(c: tl.tensor, e: tl.tensor) -> tl.tensor:
    """The same in the interpreter, which has no functions of a GPU's library."""
    handle = type(c.handle)(c.handle.data**e.handle.data, c.handle.dtype)
    return tl.tensor(handle, c.type)


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, accumulated in the dtype of sums. With ``PRECISION`` "tf32", fp32 is rounded to it first."""
    if INTERPRETED:  # the interpreter's product of half-precision tiles is wrong
        a = widened(a)
        b = widened(b)
    if PRECISION == "tf32" and a.dtype == tl.float32:
        a = to_tf32(a)
        b = to_tf32(b)
    return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def safe_inverse(v, EXACT: tl.constexpr = False):
    """1/v, or 0 where v = 0, so that a zero patch or a zero filter does not yield NaN.

    ``EXACT`` rounds it to nearest. Without, it takes fewer instructions, and in fp32 may be off in the last places.
    """
    zero = v == 0
    divisor = tl.where(zero, 1.0, v)
    return tl.where(zero, 0.0, exact_ratio(1.0, divisor) if EXACT else 1.0 / divisor)


@triton.jit
def all_finite(v):
    """Whether no value of a tile is infinite or NaN."""
    return tl.min((tl.abs(v) < float("inf")).to(tl.int32)) == 1


@triton.jit
def pixel(index, height, width):
    """The (image, row, column) of the pixel with this index."""
    rows = index // width
    return (rows // height).to(tl.int64), rows % height, index % width


@triton.jit
def tile_of(rows, BM: tl.constexpr, BN: tl.constexpr):
    """The rows and the columns of the program's tile; rows change fastest.

    All tiles lie on the grid's first axis, because the others have at most 65535 programs.
    """
    blocks = tl.cdiv(rows, BM)
    program = tl.program_id(0)
    return program % blocks * BM + tl.arange(0, BM), program // blocks * BN + tl.arange(0, BN)
