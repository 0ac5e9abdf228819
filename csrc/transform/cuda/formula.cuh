// The formula's constants in a kernel, and its power as a constant of the compiler.
#pragma once

#include "common/cuda/primitives.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

// b is read from the device where it is a tensor.
__device__ __forceinline__ Constants<float> constants(const Formula& f, bool frozen = false) {
  Constants<float> k{f.b_minus_1, f.cos_eps, f.eps_inside, f.eps_outside, frozen ? 0.f : 1.f};
  if (f.b != nullptr) {
    k.b_minus_1 = *f.b - 1;
    if (f.exact_two && k.b_minus_1 == 1) k.cos_eps = 0;
  }
  return k;
}

// Calls f with the power as a std::integral_constant, so that a loop inside f does not branch on it.
template <typename F>
__device__ __forceinline__ void by_power(Power power, F&& f) {
  if (power == Power::One)
    f(std::integral_constant<Power, Power::One>{});
  else if (power == Power::Two)
    f(std::integral_constant<Power, Power::Two>{});
  else
    f(std::integral_constant<Power, Power::General>{});
}

}  // namespace bcos::transform::cuda
