// Functions of one number that the kernels of every op share, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace bcos {

template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A magnitude(A v) {
  return std::abs(v);
}

// 1/v, and 0 where v is 0: the norm of a zero patch or a zero filter must not become NaN.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE A safe_inverse(A v) {
  return v == A(0) ? A(0) : A(1) / v;
}

// Whether a value replaces the best of a maximum so far. Of equal values the first stays, and so does the
// first NaN, as in torch.max.
template <typename A>
BCOS_HOST_DEVICE BCOS_INLINE bool replaces(A value, A best) {
  return !(value <= best) && best == best;
}

}  // namespace bcos
