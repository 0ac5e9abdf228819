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

// Of one element of ScaleSecond, with v as y or l: u without alpha, dgrad, dl, and what it adds to dn and to
// t / r.
struct SecondOrder {
  float u, dgrad, dl, dn, t;
};

template <Power P>
__device__ __forceinline__ SecondOrder second_order(float grad, float v, float p, float inv_n, float rm,
                                                    const Constants<float>& k) {
  const Partials<float> d = partials<P>(v, v, inv_n, k);
  const float cosine = signed_cosine<P>(v, v, inv_n);
  const float dl = grad * curvature<P>(cosine, inv_n, k) * (p - cosine * rm);
  return {grad * d.l, d.l * p + d.n * rm, dl, -cosine * dl, grad * d.n};
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
