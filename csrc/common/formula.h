// The B-cos transform of one element, for host and device (Böhle et al., CVPR 2022, eq. 3; TPAMI 2024).
//   l = alpha z + bias           z = x * w, alpha = 1/|w| (unit weights) or 1
//   n = sqrt(sum x^2 + eps_inside) + eps_outside
//   c = |l|/n + cos_eps,  s = c^(b-1),  y = s l
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"
#include "common/power.h"

namespace bcos {

// b = 1 has no norm; b = 2 has no epsilon and needs no saved l; General covers every other b and b as a
// tensor.
enum class Power : int { One, Two, General };

template <typename A>
struct Constants {
  A b_minus_1, cos_eps, eps_inside, eps_outside;
  A detached;  // 0 in explanation mode, where s is a constant of the backward; else 1
};

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A magnitude(A v) {
  return std::abs(v);
}

// 1/v, and 0 for the norm of a zero patch or a zero filter, which must not become NaN.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A safe_inverse(A v) {
  return v == A(0) ? A(0) : A(1) / v;
}

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A root_norm(A squares, const Constants<A>& k) {
  return std::sqrt(squares + k.eps_inside) + k.eps_outside;
}

// dn/dx = x * root_gradient(n)
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A root_gradient(A n, const Constants<A>& k) {
  return safe_inverse(n - k.eps_outside);
}

// Whether candidate replaces best in a maximum that keeps the first of equals and the first NaN, as torch.max
// does.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE bool replaces(A candidate, A best) {
  return !(candidate <= best) && best == best;
}

template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A transform(A l, A inv_n, const Constants<A>& k) {
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
// 1e-20 or so) this gives 0: on the CPU such a call takes General with a recovered l (cpu/range.h), on a GPU
// it does not.
template <Power P, typename A>
BCOS_HOST_DEVICE BCOS_INLINE Partials<A> partials(A y, A l, A inv_n, const Constants<A>& k) {
  if constexpr (P == Power::One) return {A(1), A(0)};
  if constexpr (P == Power::Two) {
    const A s = std::sqrt(magnitude(y) * inv_n);
    return {s + k.detached * s, -k.detached * y * inv_n};
  }
  const A cosine = magnitude(l) * inv_n, c = cosine + k.cos_eps;
  const A s = power(c, k.b_minus_1);
  // c = 0 only where cosine = 0; a plain division there keeps the loop free of branches
  const A slope = k.detached * k.b_minus_1 * (s / (c == A(0) ? A(1) : c)) * cosine;
  return {s + slope, -slope * l * inv_n};
}

// dy/db = y ln c, which tends to 0 with y
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A partial_b(A l, A inv_n, const Constants<A>& k) {
  const A y = transform<Power::General>(l, inv_n, k);
  return y == A(0) ? A(0) : y * std::log(magnitude(l) * inv_n + k.cos_eps);
}

}  // namespace bcos
