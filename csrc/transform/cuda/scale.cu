// The scale |cos|^(b-1) beside a vendor convolution, forward and backward. Rows are pixels x groups.
#include "transform/cuda/launch.h"
#include "transform/cuda/values.cuh"

namespace bcos::transform::cuda {
namespace {

template <typename T, typename O, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads<PLANES>) scale_fwd_kernel(const ScaleFwd<SumsOf<T>> p) {
  using A = SumsOf<T>;
  const int64_t first = (int64_t(blockIdx.x) * kThreads<PLANES> + threadIdx.x) * V;
  if (first >= int64_t(p.rows) * p.OG) return;
  const Values<PLANES, V> values(p, first);
  A best[V], y[V], inv_n[values.kRows] = {};
  Vector<uint8_t, V> winner{};
  for (int m = 0; m < p.max_out; ++m) {
    A l[V];
    values.load_products(l, static_cast<const T*>(p.z), p, m);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const int f = values.filter(p, i, m);
      const A alpha = p.alpha != nullptr ? p.alpha[f] : A(1);
      l[i] = l[i] * alpha + (p.bias != nullptr ? load_as<A>(p.bias, p.bias_dtype, f) : A(0));
      if (m == 0 || replaces(l[i], best[i])) {
        best[i] = l[i];
        winner.v[i] = uint8_t(m);
      }
    }
  }
  const Constants<A> k = constants(p.formula);
  if (p.formula.power != Power::One) {
    load(inv_n, p.n, values.first_row(p), true);
#pragma unroll
    for (int r = 0; r < values.kRows; ++r) inv_n[r] = safe_inverse(inv_n[r]);
  }
  by_power(p.formula.power, [&](auto power) {
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] = scaled<decltype(power)::value>(best[i], inv_n[values.row_of(i)], k);
  });
  store(static_cast<O*>(p.y), first, y, true);
  if (p.l != nullptr) store(static_cast<O*>(p.l), first, best, true);
  if (p.max_out > 1) *reinterpret_cast<Vector<uint8_t, V>*>(p.winner + first) = winner;
}

// Registers to hold everything decide how many blocks run on a multiprocessor.
template <typename T, typename O, bool PLANES, int V>
__global__ void __launch_bounds__(kThreads<PLANES>, PLANES           ? 2
                                                    : sizeof(T) == 8 ? 3
                                                                     : 6)
    scale_bwd_kernel(const ScaleBwd<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  using Values = Values<PLANES, V>;
  const Walk<PLANES, V> walk(p.rows, p.plane, slices);
  const Constants<A> k = constants(p.formula, p.frozen);
  const int64_t scale = walk.row % p.scales;
  A n[Values::kRows] = {}, inv_n[Values::kRows], total[Values::kRows] = {}, db = 0;
  if (walk.inside && p.formula.power != Power::One) load(n, p.n, scale, true);
#pragma unroll
  for (int r = 0; r < Values::kRows; ++r) inv_n[r] = safe_inverse(n[r]);
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = walk.slice * Values::kOutputs; walk.inside && o < p.OG; o += slices * Values::kOutputs) {
      const Values values(p, walk, walk.row, o), held(p, walk, scale, o);
      A grad[V], v[V] = {}, u[V];
      load(grad, static_cast<const O*>(p.grad), values.at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), held.at, true);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = restored<P>(p.formula, v[i], inv_n[values.row_of(i)], k);
      if (P == Power::Two && p.map != nullptr) {
#pragma unroll
        for (int i = 0; i < V; ++i) grad[i] = mapped(p, values.output_of(i), grad[i], v[i]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const A inverse = inv_n[values.row_of(i)];
        const auto [dl, dn] = partials<P>(v[i], v[i], inverse, k);
        u[i] = grad[i] * dl;
        total[values.row_of(i)] += grad[i] * dn;
        if (P == Power::General && p.db != nullptr) db += grad[i] * partial_b(v[i], inverse, k);
      }
      if (p.dl != nullptr) {
        load(grad, static_cast<const O*>(p.dl), values.at, true);
#pragma unroll
        for (int i = 0; i < V; ++i) u[i] += grad[i];
      }
      values.store_winners(static_cast<T*>(p.u), u, held.winners(p), p, p.alpha);
    }
  });
  walk.add_slices(total);
  if (p.t != nullptr && walk.inside && walk.slice == 0) {
    A more[Values::kRows] = {};
    if (p.dn != nullptr) load(more, p.dn, walk.row, true);
#pragma unroll
    for (int r = 0; r < Values::kRows; ++r)
      total[r] = (total[r] + more[r]) * (p.of_n ? A(1) : root_gradient(n[r], k));
    store(p.t, walk.row, total, true);
  }
  if (p.db != nullptr) {
    db = block_sum(db, Plan<PLANES, V, A>::shared);
    if (threadIdx.x == 0) p.db[blockIdx.x] = db;
  }
}

}  // namespace

template <typename A>
cudaError_t scale_fwd(const ScaleFwd<A>& p, cudaStream_t stream) {
  const int64_t outputs = int64_t(p.rows) * p.OG;
  if (outputs == 0) return cudaSuccess;
  if (!is_known<A>(p.bias_dtype)) return cudaErrorInvalidValue;
  return by_values<A>(p, [&](auto type, auto out, auto planes, auto width) {
    const auto kernel =
        scale_fwd_kernel<typename decltype(type)::type, typename decltype(out)::type, planes, width>;
    const dim3 grid(ceil_div(outputs, kThreads<planes> * width));
    return start(kernel, grid, kThreads<planes>, 0, stream, p);
  });
}

template <typename A>
int scale_bwd_blocks(const ScaleBwd<A>& p) {
  int blocks = 0;
  by_values<A>(p, [&](auto, auto, auto planes, auto width) {
    blocks = int(Plan<planes, width, A>(p).grid.x);
    return cudaSuccess;
  });
  return blocks;
}

template <typename A>
cudaError_t scale_bwd(const ScaleBwd<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return by_values<A>(p, [&](auto type, auto out, auto planes, auto width) {
    const auto kernel =
        scale_bwd_kernel<typename decltype(type)::type, typename decltype(out)::type, planes, width>;
    const Plan<planes, width, A> plan(p);
    const size_t of_db = kThreads<planes> / 32 * sizeof(A);
    return start(kernel, plan.grid, kThreads<planes>, plan.shared + of_db, stream, p, plan.slices);
  });
}

BCOS_FOR_BOTH_SUMS(scale_fwd, ScaleFwd);
template int scale_bwd_blocks(const ScaleBwd<float>&);
template int scale_bwd_blocks(const ScaleBwd<double>&);
BCOS_FOR_BOTH_SUMS(scale_bwd, ScaleBwd);

}  // namespace bcos::transform::cuda
