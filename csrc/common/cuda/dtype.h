// The element types of the CUDA kernels.
#pragma once

#include <type_traits>

namespace bcos::cuda {

enum class Dtype : int { Float32, Float16, BFloat16, Float64 };

template <typename T>
struct Type {
  using type = T;
};

// Kernels add up values in the type A: fp64 in double, all others in float.
template <typename T>
using SumsOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Whether values of this dtype are added up in A. Kernels that read a dtype at run time do not check it:
// their launchers do.
template <typename A = float>
constexpr bool is_known(Dtype dtype) {
  if (std::is_same_v<A, double>) return dtype == Dtype::Float64;
  return dtype == Dtype::Float32 || dtype == Dtype::Float16 || dtype == Dtype::BFloat16;
}

// Whether an output may have dtype `out` beside an input of `dtype`: the same, or fp32 beside a half type.
template <typename A = float>
constexpr bool is_output_of(Dtype dtype, Dtype out) {
  return is_known<A>(dtype) && (out == dtype || (out == Dtype::Float32 && is_known<A>(out)));
}

}  // namespace bcos::cuda
