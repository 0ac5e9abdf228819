// The B-cos transform of one element, for host and device (Böhle et al., CVPR 2022, eq. 3; TPAMI 2024).
//   l = alpha z + bias           z = x * w, alpha = 1/|w| (unit weights) or 1
//   n = sqrt(sum x^2 + eps_inside) + eps_outside
//   c = |l|/n + cos_eps,  s = c^(b-1),  y = s l
#pragma once

#include <cmath>

#include "common/power.h"
#include "common/scalar.h"

namespace bcos::transform {

// b = 1 has no norm; b = 2 has no epsilon; General covers every other b and b as a tensor.
enum class Power : int { One, Two, General };

// Whether the backward is formed of y, which stands for l at b = 2, and not of l. Not in fp16: its smallest
// normal number is 6e-5, and y, about the square of l, loses its digits below that while l still has all of
// them.
constexpr bool saves_output(Power power, bool is_fp16) {
  return power == Power::Two && !is_fp16;
}

template <typename A>
struct Constants {
  A b_minus_1, cos_eps, eps_inside, eps_outside;
  A unfrozen;  // 0 where s is a constant of the derivative, else 1
};

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A root_norm(A squares, const Constants<A>& k) {
  return std::sqrt(squares + k.eps_inside) + k.eps_outside;
}

// n without the epsilon beside its root
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A root_of(A n, const Constants<A>& k) {
  return n - k.eps_outside;
}

// dn/dx = x * root_gradient(n)
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A root_gradient(A n, const Constants<A>& k) {
  return safe_inverse(root_of(n, k));
}

// y = s l
template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A scaled(A l, A inv_n, const Constants<A>& k) {
  if constexpr (P == Power::One) return l;
  const A cosine = magnitude(l) * inv_n;
  if constexpr (P == Power::Two) return cosine * l;
  return power(cosine + k.cos_eps, k.b_minus_1) * l;
}

template <typename A>
struct Partials {
  A l;  // dy/dl
  A n;  // dy/dn
};

// b = 2 recovers |l| = sqrt(|y| n) from y and ignores l; b = 1 ignores both. Where y underflows (|l| below
// 1e-20 or so) this gives 0. On the CPU such a call takes General with a recovered l instead
// (transform/cpu/range.h); on a GPU it does not.
template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE Partials<A> partials(A y, A l, A inv_n, const Constants<A>& k) {
  if constexpr (P == Power::One) return {A(1), A(0)};
  if constexpr (P == Power::Two) {
    const A s = std::sqrt(magnitude(y) * inv_n);
    return {s + k.unfrozen * s, -k.unfrozen * y * inv_n};
  }
  const A cosine = magnitude(l) * inv_n, c = cosine + k.cos_eps;
  const A s = power(c, k.b_minus_1);
  // c = 0 only where cosine = 0; a plain division there keeps the loop free of branches
  const A slope = k.unfrozen * k.b_minus_1 * (s / (c == A(0) ? A(1) : c)) * cosine;
  return {s + slope, -slope * l * inv_n};
}

// The cosine with the sign of l, l/n. b = 2 recovers it from y as `partials` does.
template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A signed_cosine(A y, A l, A inv_n) {
  if constexpr (P == Power::Two) return std::copysign(std::sqrt(magnitude(y) * inv_n), y);
  return l * inv_n;
}

// The slope of Partials::l along l. y is homogeneous in (l, n): the gradient of Partials::l is this slope
// times (1, -l/n), and that of Partials::n is -l/n times the same. 0 at l = 0, as the derivative of |l|
// there.
template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A curvature(A cosine, A inv_n, const Constants<A>& k) {
  if constexpr (P == Power::One) return A(0);
  const A sign = A(cosine > 0) - A(cosine < 0);
  if constexpr (P == Power::Two) return sign * (A(1) + k.unfrozen) * inv_n;
  const A size = magnitude(cosine), c = size + k.cos_eps, divisor = c == A(0) ? A(1) : c;
  const A slope = k.b_minus_1 * (power(c, k.b_minus_1) / divisor);  // of s along the cosine
  const A bend = (k.b_minus_1 - A(1)) / divisor * size;
  return sign * slope * (A(1) + k.unfrozen * (A(1) + bend)) * inv_n;
}

// dy/db = y ln c, which tends to 0 with y
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A partial_b(A l, A inv_n, const Constants<A>& k) {
  const A y = scaled<Power::General>(l, inv_n, k);
  return y == A(0) ? A(0) : y * std::log(magnitude(l) * inv_n + k.cos_eps);
}

}  // namespace bcos::transform
