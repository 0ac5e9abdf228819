// The scale of dynamic alignment units (Böhle et al., CVPR 2021, eqs. 2 and 3), for one dynamic weight w, on
// host and device.
#pragma once

#include <cmath>

#include "common/scalar.h"

namespace bcos::dynamic_alignment {

// How the dynamic weights are rescaled: by |w|/(1 + |w|^2), or by the inverse of their 1- or 2-norm.
enum class Norm { Squash, L1, L2 };

// What one value of w adds to the sum of which its norm is made.
template <Norm kind, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A norm_term(A w) {
  return kind == Norm::L1 ? magnitude(w) : w * w;
}

// The norm that the sum of those terms gives.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A norm_of(Norm kind, A sum) {
  return kind == Norm::L1 ? sum : std::sqrt(sum);
}

// What the product of w and the patch is multiplied by; 0 for a zero w.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A scale(Norm kind, A norm) {
  return kind == Norm::Squash ? norm / (1 + norm * norm) : safe_inverse(norm);
}

// d scale/dw = scale * slope * direction(w); 0 for a zero w.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A slope(Norm kind, A norm) {
  const A square = norm * norm;
  if (kind == Norm::Squash) return (1 - square) / (1 + square) * safe_inverse(square);
  return -safe_inverse(kind == Norm::L1 ? norm : square);
}

template <Norm kind, typename A>
BCOS_HOST_DEVICE BCOS_INLINE A direction(A w) {
  return kind == Norm::L1 ? A((w > 0) - (w < 0)) : w;
}

}  // namespace bcos::dynamic_alignment
