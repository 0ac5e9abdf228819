// What torch's element types mean to the kernels.
#pragma once

#include <c10/core/ScalarType.h>

namespace bcos {

// The type of sums over values of type t, and of what is formed from such sums.
inline at::ScalarType accumulate_type(at::ScalarType t) {
  return t == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool is_half(at::ScalarType t) {
  return t == at::kBFloat16 || t == at::kHalf;
}

}  // namespace bcos
