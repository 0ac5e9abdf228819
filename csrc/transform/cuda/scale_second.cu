// The second derivative of the scale beside a vendor convolution. Rows are pixels x groups.
#include "transform/cuda/launch.h"
#include "transform/cuda/values.cuh"

namespace bcos::transform::cuda {
namespace {

// Registers to hold everything decide how many blocks run on a multiprocessor.
template <typename T, typename O, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads<PLANES>, PLANES           ? 2
                                                    : sizeof(T) == 8 ? 3
                                                                     : 4)
    scale_second_kernel(const ScaleSecond<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  using Values = Values<PLANES, V>;
  const Walk<PLANES, V> walk(p.rows, p.plane, slices);
  const Constants<A> k = constants(p.formula, p.frozen);
  const T* z = static_cast<const T*>(p.z);
  A n[Values::kRows] = {}, root[Values::kRows], inv_n[Values::kRows], rm[Values::kRows] = {};
  A dn[Values::kRows] = {}, t[Values::kRows] = {};
  if (walk.inside && p.formula.power != Power::One) load(n, p.n, walk.row, true);
  if (walk.inside && p.m != nullptr) load(rm, p.m, walk.row, true);
#pragma unroll
  for (int r = 0; r < Values::kRows; ++r) {
    inv_n[r] = safe_inverse(n[r]);
    root[r] = root_of(n[r], k);
  }
  if (walk.inside && p.root != nullptr) load(root, p.root, walk.row, true);
#pragma unroll
  for (int r = 0; r < Values::kRows; ++r) rm[r] *= safe_inverse(root[r]);
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = walk.slice * Values::kOutputs; walk.inside && o < p.OG; o += slices * Values::kOutputs) {
      const Values values(p, walk, walk.row, o);
      const auto winner = values.winners(p);
      A grad[V], v[V] = {}, products[V], u[V], dgrad[V], dl[V];
      load(grad, static_cast<const O*>(p.grad), values.at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), values.at, true);
      if (p.max_out == 1) {
        load(products, z, values.at, true);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) products[i] = widened(z[values.product(p, i, winner.v[i])]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int r = values.row_of(i);
        const A alpha = p.alpha != nullptr ? p.alpha[values.filter(p, i, winner.v[i])] : A(1);
        const A value = restored<P>(p.formula, v[i], inv_n[r], k);
        const SecondOrder<A> found = second_order<P>(grad[i], value, products[i] * alpha, inv_n[r], rm[r], k);
        u[i] = found.u * alpha;
        dgrad[i] = found.dgrad;
        dl[i] = found.dl;
        dn[r] += found.dn;
        t[r] += found.t;
      }
      store(static_cast<O*>(p.dgrad), values.at, dgrad, true);
      if (p.dl != nullptr) store(static_cast<O*>(p.dl), values.at, dl, true);
      values.store_winners(static_cast<T*>(p.u), u, winner, p, nullptr);
    }
  });
  if (p.dl == nullptr) return;
  walk.add_slices(dn);
  if (PLANES) barrier();  // before what the first slice reads is overwritten
  walk.add_slices(t);
  if (!walk.inside || walk.slice != 0) return;
#pragma unroll
  for (int r = 0; r < Values::kRows; ++r) {
    t[r] *= safe_inverse(root[r]);
    dn[r] -= rm[r] * t[r];
  }
  store(p.dn, walk.row, dn, true);
  store(p.t, walk.row, t, true);
}

}  // namespace

template <typename A>
cudaError_t scale_second(const ScaleSecond<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return by_values<A>(p, [&](auto type, auto out, auto planes, auto width) {
    const auto kernel =
        scale_second_kernel<typename decltype(type)::type, typename decltype(out)::type, planes, width>;
    const Plan<planes, width, A> plan(p);
    return start(kernel, plan.grid, kThreads<planes>, plan.shared, stream, p, plan.slices);
  });
}

BCOS_FOR_BOTH_SUMS(scale_second, ScaleSecond);

}  // namespace bcos::transform::cuda
