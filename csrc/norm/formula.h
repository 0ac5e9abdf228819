// The formula of a norm, for host and device: y = γ (x − [centered] mean) r + β with r = 1/√(var + eps),
// where var is the biased variance around the mean (B-cos Alignment, TPAMI 2024, section 4.2).
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace bcos::norm {

// The mean of a number of values, which is mean + rest, and the sum of their squared distances from it.
// `rest` is what the rounding of the mean left out: where values lie far from zero it may be all that tells
// two means apart.
template <typename A>
struct Moments {
  A mean, rest, squares;
};

// base + more, without loss unless |more| is the larger.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE Moments<A> moments_of(A base, A more, A squares) {
  const A mean = base + more;
  return {mean, more - (mean - base), squares};
}

// Those of two disjoint sets of values together (Chan, Golub and LeVeque, Updating formulae and a pairwise
// algorithm for computing sample variances, 1979). The second one may be empty.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE Moments<A> joined(const Moments<A>& a, A a_count, const Moments<A>& b,
                                               A b_count) {
  const A share = b_count / (a_count + b_count);
  const A step = (b.mean - a.mean) + (b.rest - a.rest);
  return moments_of(a.mean, a.rest + step * share, a.squares + b.squares + step * step * (a_count * share));
}

// What the values of one channel undergo: y = (x − shift) gain + offset.
template <typename A>
struct Affine {
  A shift, gain, offset;

  BCOS_HOST_DEVICE BCOS_INLINE A operator()(A x) const { return (x - shift) * gain + offset; }
};

// dx = grad * of_grad + (x − mean) * of_x + offset
template <typename A>
struct Gradient {
  A of_grad, of_x, offset;

  BCOS_HOST_DEVICE BCOS_INLINE A operator()(A grad, A from_mean) const {
    return grad * of_grad + from_mean * of_x + offset;
  }
};

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A inverse_std(A var, A eps) {
  return A(1) / std::sqrt(var + eps);
}

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE Affine<A> affine(A mean, A r, A gamma, A beta, bool centered) {
  return {centered ? mean : A(0), gamma * r, beta};
}

// Of `count` values that share r: `products` is the sum of γ grad (x − shift), `grads` that of γ grad. The
// variance is a constant where `frozen`. `centered` says that these values' own mean is taken from them. That
// of a value alone is the value: y does not depend on it, and terms that are rounded apart would not cancel.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE Gradient<A> gradient(A r, A gamma, A products, A grads, A count, bool centered,
                                                  bool frozen) {
  if (centered && count == A(1)) return {A(0), A(0), A(0)};
  return {gamma * r, frozen ? A(0) : -products * r * r * r / count, centered ? -grads * r / count : A(0)};
}

// A second derivative has a gradient of var, which adds (x − mean) of_var(dvar) to that of x.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A of_var(A dvar, A count) {
  return A(2) * dvar / count;
}

// That of <v, dx>, where dx takes the variance as a constant: `products` is the sum of γ grad (v − [centered]
// mean of v) over the values that share var.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A var_gradient(A r, A products) {
  return A(-0.5) * products * r * r * r;
}

}  // namespace bcos::norm
