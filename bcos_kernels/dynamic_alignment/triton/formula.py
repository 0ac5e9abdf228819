"""The scale of dynamic alignment units, in Triton (Böhle et al., CVPR 2021, eqs. 2 and 3).

``NORM`` is ``"squash"``, ``"l1"`` or ``"l2"``.
"""

import triton
import triton.language as tl

from ...gpu.functions import exact_ratio, exact_root, safe_inverse


@triton.jit
def norm_term(w, NORM: tl.constexpr):
    """What one value of w adds to the sum of which its norm is made."""
    return tl.abs(w) if NORM == "l1" else w * w


@triton.jit
def norm_of(total, NORM: tl.constexpr):
    """The norm that the sum of those terms gives."""
    return total if NORM == "l1" else exact_root(total)


@triton.jit
def scale(norm, NORM: tl.constexpr):
    """What the product of w and the patch is multiplied by; 0 for a zero w."""
    if NORM == "squash":
        return exact_ratio(norm, 1.0 + norm * norm)
    return safe_inverse(norm)


@triton.jit
def slope(norm, NORM: tl.constexpr):
    """The derivative of the scale by w, divided by the scale and by w, of ``"l1"`` by the sign of w; 0 for w = 0."""
    square = norm * norm
    if NORM == "squash":
        return exact_ratio(1.0 - square, 1.0 + square) * safe_inverse(square)
    return -safe_inverse(norm if NORM == "l1" else square)
