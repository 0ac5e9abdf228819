// The formula's constants in a kernel, and its power as a constant of the compiler.
#pragma once

#include "common/cuda/primitives.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

// b is read from the device where it is a tensor.
template <typename A>
__device__ __forceinline__ Constants<A> constants(const Formula<A>& f, bool frozen = false) {
  Constants<A> k{f.b_minus_1, f.cos_eps, f.eps_inside, f.eps_outside, frozen ? A(0) : A(1)};
  if (f.b != nullptr) {
    k.b_minus_1 = *f.b - 1;
    if (f.exact_two && k.b_minus_1 == 1) k.cos_eps = 0;
  }
  return k;
}

// What partials and signed_cosine take, y at b = 2 and else l, of what is given as v.
template <Power P, typename A>
__device__ __forceinline__ A restored(const Formula<A>& f, A v, A inv_n, const Constants<A>& k) {
  return P == Power::Two && f.of_l ? scaled<P>(v, inv_n, k) : v;
}

// Of one element of ScaleSecond, with v as y or l: u without alpha, dgrad, dl, and what it adds to dn and to
// t / r.
template <typename A>
struct SecondOrder {
  A u, dgrad, dl, dn, t;
};

template <Power P, typename A>
__device__ __forceinline__ SecondOrder<A> second_order(A grad, A v, A p, A inv_n, A rm,
                                                       const Constants<A>& k) {
  const Partials<A> d = partials<P>(v, v, inv_n, k);
  const A cosine = signed_cosine<P>(v, v, inv_n);
  const A dl = grad * curvature<P>(cosine, inv_n, k) * (p - cosine * rm);
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
