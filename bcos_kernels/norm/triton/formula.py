"""A norm of one element, in Triton, and the mean and variance of many (B-cos Alignment, TPAMI 2024, section 4.2).

::

    y = gamma · (x − [centered] mean) · r + beta        r = 1/√(var + eps)

``var`` is the biased variance around the mean, also where the norm is not centered.
"""

import triton
import triton.language as tl

from ...gpu.functions import exact_ratio, exact_root


@triton.jit
def merge(n, mean, squares, more, their_mean, their_squares):
    """The count, the mean and the sum of squares around it of two sets of values (Chan et al., 1979).

    An empty set has the count 0 and finite values.
    """
    total = n + more
    share = exact_ratio(more, tl.maximum(total, 1.0))
    distance = their_mean - mean
    return total, mean + distance * share, squares + their_squares + distance * distance * (n * share)


@triton.jit
def merged(n, mean, squares, AXIS: tl.constexpr):
    """The same of all sets along an axis of a tile; the counts may be those of one line along it."""
    total = tl.sum(n, axis=AXIS)
    size = tl.maximum(total, 1.0)
    together = exact_ratio(tl.sum(n * mean, axis=AXIS), size)
    together += exact_ratio(tl.sum(n * (mean - tl.expand_dims(together, AXIS)), axis=AXIS), size)  # what was rounded
    distance = mean - tl.expand_dims(together, AXIS)
    return total, together, tl.sum(squares + distance * distance * n, axis=AXIS)


@triton.jit
def inverse_std(var, eps):
    """r."""
    return exact_ratio(1.0, exact_root(var + eps))


@triton.jit
def normalized(x, shift, r, gamma, beta):
    """y; ``shift`` is the mean where the norm is centered, else 0."""
    return (x - shift) * (gamma * r) + beta


@triton.jit
def of_x(r, products, count):
    """The factor of x − mean in dx ÷ r, unless the variance is a constant.

    Of ``count`` values that share r, ``products`` is the sum of gamma · grad · (x − shift) · r.
    """
    return -(products / count) * r


@triton.jit
def of_all(grads, count):
    """What a centered norm adds to dx ÷ r; of ``count`` values that share r, ``grads`` is the sum of gamma · grad."""
    return -(grads / count)


@triton.jit
def of_var(dvar, count):
    """The factor of x − mean in dx that a second derivative's gradient of var adds."""
    return 2.0 * dvar / count


@triton.jit
def var_gradient(r, products):
    """The gradient of var of ⟨v, dx⟩, where dx takes var as a constant.

    ``products`` is the sum of gamma · grad · (v − [centered] mean of v) over the values that share var.
    """
    return -0.5 * products * r * r * r
