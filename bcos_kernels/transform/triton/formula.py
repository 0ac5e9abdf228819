"""The B-cos transform of one element, in Triton (Böhle et al., CVPR 2022, eq. 3; TPAMI 2024).

::

    l = alpha·z + bias           z = x ⋆ w, alpha = 1/‖w‖ (unit weights) or 1
    n = √(Σx² + eps_inside) + eps_outside
    c = |l|/n + cos_eps,  s = c^(b-1),  y = s·l

``POWER`` is 1 or 2 where b is that number, and 0 for every other b and for a tensor. Everything is computed in the
dtype of the arguments, which is that of sums: fp64 or fp32. With ``EXACT`` (fp64 and fp32 tensors) results are accurate
to the last places of that dtype, otherwise to those of a half-precision dtype.
"""

import triton
import triton.language as tl

from ...gpu.functions import exact_root, safe_inverse, wide_power


@triton.jit
def root(v, EXACT: tl.constexpr):
    if EXACT:
        return exact_root(v)
    return tl.sqrt(v)


@triton.jit
def root_norm(squares, eps_inside, eps_outside):
    """The patch norm n from ``squares``, Σx² over the patch."""
    return exact_root(squares + eps_inside) + eps_outside


@triton.jit
def root_gradient(n, eps_outside, EXACT: tl.constexpr = False):
    """dn/dx ÷ x."""
    return safe_inverse(n - eps_outside, EXACT)


@triton.jit
def power(c, e, EXACT: tl.constexpr):
    """c^e for c ≥ 0 and e ≥ 0."""
    if c.dtype == tl.float64:
        s = wide_power(c, e)
    elif EXACT:
        s = tl.exp(tl.log(c.to(tl.float64)) * e).to(tl.float32)
    else:
        s = tl.exp2(tl.log2(c) * e)
    return tl.where(e == 0, 1.0, s)


@triton.jit
def exponent(b_ptr, b_minus_1, cos_eps, TENSOR_B: tl.constexpr, EXACT_TWO: tl.constexpr, SUMS: tl.constexpr):
    """(b - 1, cos_eps): the given values, or those that follow from the tensor b, in the dtype ``SUMS``."""
    if TENSOR_B:
        b = tl.load(b_ptr).to(SUMS)
        b_minus_1 = b - 1.0
        if EXACT_TWO:
            cos_eps = tl.where(b == 2.0, tl.full((), 0.0, SUMS), cos_eps)
    return b_minus_1, cos_eps


@triton.jit
def transform(l, inv_n, b_minus_1, cos_eps, POWER: tl.constexpr, EXACT: tl.constexpr):  # noqa: E741
    """y from l and 1/n."""
    if POWER == 1:
        return l
    cosine = tl.abs(l) * inv_n
    if POWER == 2:
        return cosine * l
    return power(cosine + cos_eps, b_minus_1, EXACT) * l


@triton.jit
def restored(v, inv_n, POWER: tl.constexpr, SAVED_L: tl.constexpr):
    """What the derivatives are formed of, y where b = 2 and else l, from v, which is l where that was saved."""
    if POWER == 2 and SAVED_L:
        v = tl.abs(v) * inv_n * v
    return v


@triton.jit
def partials(
    v, inv_n, b_minus_1, cos_eps,
    POWER: tl.constexpr, FROZEN: tl.constexpr, EXACT: tl.constexpr, OF_L: tl.constexpr = False,
):  # fmt: skip
    """(∂y/∂l, ∂y/∂n) from v, which is y where b = 2, because |l| = √(|y|·n), else l, and l with ``OF_L`` as well.

    ``FROZEN`` makes s a constant. At b = 2 both are 0 where y underflows, which is for |l| below about 1e-20.
    """
    if POWER == 1:
        dl = tl.full(v.shape, 1.0, v.dtype)
        dn = tl.zeros(v.shape, v.dtype)
    elif POWER == 2:
        s = tl.abs(v) * inv_n if OF_L else root(tl.abs(v) * inv_n, EXACT)
        dl = s if FROZEN else 2.0 * s
        dn = -v * inv_n * s if OF_L else -v * inv_n
    else:
        cosine = tl.abs(v) * inv_n
        c = cosine + cos_eps
        s = power(c, b_minus_1, EXACT)
        slope = b_minus_1 * (s / tl.where(c == 0, 1.0, c)) * cosine
        dl = s if FROZEN else s + slope
        dn = -slope * v * inv_n
    return dl, dn


@triton.jit
def signed_cosine(v, inv_n, POWER: tl.constexpr, EXACT: tl.constexpr):
    """l/n, the cosine with the sign of l, from v as :func:`partials` takes it."""
    if POWER == 2:
        size = root(tl.abs(v) * inv_n, EXACT)
        return tl.where(v < 0, -size, size)
    return v * inv_n


@triton.jit
def curvature(
    cosine, inv_n, b_minus_1, cos_eps, POWER: tl.constexpr, FROZEN: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """The slope of ∂y/∂l along l, from the signed cosine; 0 at l = 0, as the derivative of |l| there.

    y is homogeneous in (l, n): the gradient of ∂y/∂l is this slope times (1, -l/n), and that of ∂y/∂n is -l/n times
    the same.
    """
    if POWER == 1:
        return tl.zeros(cosine.shape, cosine.dtype)
    size = tl.abs(cosine)
    bend = 1.0 if POWER == 2 else 0.0
    slope = tl.where(cosine > 0, inv_n, tl.where(cosine < 0, -inv_n, 0.0))
    if POWER != 2:
        c = size + cos_eps
        divisor = tl.where(c == 0, 1.0, c)
        slope *= b_minus_1 * (power(c, b_minus_1, EXACT) / divisor)
        bend = 1.0 + (b_minus_1 - 1.0) / divisor * size
    return slope if FROZEN else slope * (1.0 + bend)


@triton.jit
def partial_b(l, inv_n, b_minus_1, cos_eps, EXACT: tl.constexpr):  # noqa: E741
    """∂y/∂b = y ln c, which tends to 0 with y."""
    c = tl.abs(l) * inv_n + cos_eps
    y = power(c, b_minus_1, EXACT) * l
    return tl.where(y == 0, 0.0, y * tl.log(tl.where(y == 0, 1.0, c)))


@triton.jit
def first_max(v, which, LOG_COLUMNS: tl.constexpr):
    """The maximum of every 2^LOG_COLUMNS neighbouring columns, and which of them it is.

    Of equal values the first counts, and a NaN counts as the largest, as in torch.max.

    v: [BM, BN]; which: [BN], the number of each column among its neighbours. Returns two [BM, BN / 2^LOG_COLUMNS].
    """
    best = tl.broadcast_to(which[None, :], v.shape)
    for _ in tl.static_range(LOG_COLUMNS):
        left, right = tl.split(tl.reshape(v, (v.shape[0], v.shape[1] // 2, 2)))
        first, second = tl.split(tl.reshape(best, (v.shape[0], v.shape[1] // 2, 2)))
        replaces = ((right > left) | (right != right)) & (left == left)
        v = tl.where(replaces, right, left)
        best = tl.where(replaces, second, first)
    return v, best
