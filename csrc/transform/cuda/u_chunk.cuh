// u = dL/dz of the outputs, as the products of the backward take it: given, or formed here of grad = dL/dy.
#pragma once

#include "transform/cuda/formula.cuh"

namespace bcos::transform::cuda {

// kVector filters of u at one output pixel: fetched first and formed later, so that the loads overlap a
// product. Params: ImplicitGemmDgrad or ImplicitGemmWgrad.
template <typename T>
struct UChunk {
  static constexpr int V = kVector<T>;
  float grad[V], v[V], n;  // grad: u itself where it is given

  // Filters from `filter` of a group at an output pixel; nothing where `site` is negative.
  template <typename Params>
  __device__ __forceinline__ void fetch(const Params& p, int64_t site, int group, int filter) {
    const Shape& s = p.shape;
    const bool has_norm = p.u == nullptr && p.formula.power != Power::One;
    n = has_norm && site >= 0 ? p.n[site * s.G + group] : 1.f;
    const int64_t first = (site * s.G + group) * s.FG + filter;
    if (site >= 0 && filter < s.FG && s.FG % V == 0 && (p.u != nullptr || s.max_out == 1)) {
      if (p.u != nullptr) {
        load(grad, static_cast<const T*>(p.u), first, true);
      } else {
        const bool wide = p.out_dtype == Dtype::Float32;
        load_output<T>(grad, p.grad, wide, first);
        if (has_norm) load_output<T>(v, p.v, wide, first);
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      grad[e] = v[e] = 0;
      if (site < 0 || !within(filter + e, s.FG)) continue;
      if (p.u != nullptr) {
        grad[e] = to_float(static_cast<const T*>(p.u)[first + e]);
        continue;
      }
      const int64_t output = (first + e) / s.max_out;
      if (s.max_out > 1 && p.winner[output] != (filter + e) % s.max_out) continue;
      grad[e] = load_as(p.grad, p.out_dtype, output);
      if (has_norm) v[e] = load_as(p.v, p.out_dtype, output);
    }
  }

  // u, and what it adds to the pixel's t.
  template <typename Params>
  __device__ __forceinline__ Vector<T> form(const Params& p, int group, int filter, float& t) const {
    Vector<T> u;
    if (p.u != nullptr) {
#pragma unroll
      for (int e = 0; e < V; ++e) u.v[e] = rounded<T>(grad[e]);
      return u;
    }
    const Constants<float> k = constants(p.formula, p.frozen);
    const float inv_n = safe_inverse(n);
    float total = 0;
    by_power(p.formula.power, [&](auto power) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        constexpr Power P = decltype(power)::value;
        const float of = restored<P>(p.formula, v[e], inv_n, k);
        const auto [dl, dn] = partials<P>(of, of, inv_n, k);
        float value = grad[e] * dl;
        total += grad[e] * dn;
        if (p.alpha != nullptr && within(filter + e, p.shape.FG))
          value *= p.alpha[group * p.shape.FG + filter + e];
        u.v[e] = rounded<T>(value);
      }
    });
    t += total * root_gradient(n, k);
    return u;
  }
};

}  // namespace bcos::transform::cuda
