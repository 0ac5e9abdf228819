// The scale |cos|^(b-1) beside a vendor convolution on NCHW tensors.
#include "transform/cuda/planes.cuh"

namespace bcos::transform::cuda::planes {
namespace {

// V neighbouring pixels of an output channel to a thread.
template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads) scale_fwd_kernel(const ScaleFwd<SumsOf<T>> p) {
  using A = SumsOf<T>;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (first >= int64_t(p.rows) * p.OG) return;
  const int64_t output = first / p.plane;  // counted over images
  const int pixel = int(first % p.plane), filter = int(output % (int64_t(p.G) * p.OG)) * p.max_out;
  A best[V], y[V], inv_n[V] = {};
  int winner[V] = {};
  for (int m = 0; m < p.max_out; ++m) {
    const A alpha = p.alpha != nullptr ? p.alpha[filter + m] : A(1);
    const A bias = p.bias != nullptr ? load_as<A>(p.bias, p.bias_dtype, filter + m) : A(0);
    A l[V];
    load(l, static_cast<const T*>(p.z), (output * p.max_out + m) * p.plane + pixel, true);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      l[i] = l[i] * alpha + bias;
      if (m == 0 || replaces(l[i], best[i])) {
        best[i] = l[i];
        winner[i] = m;
      }
    }
  }
  const Constants<A> k = constants(p.formula);
  if (p.formula.power != Power::One) {
    load(inv_n, p.n, output / p.OG * p.plane + pixel, true);
#pragma unroll
    for (int i = 0; i < V; ++i) inv_n[i] = safe_inverse(inv_n[i]);
  }
  by_power(p.formula.power, [&](auto power) {
#pragma unroll
    for (int i = 0; i < V; ++i) y[i] = scaled<decltype(power)::value>(best[i], inv_n[i], k);
  });
  store(static_cast<O*>(p.y), first, y, true);
  if (p.l != nullptr) store(static_cast<O*>(p.l), first, best, true);
  if (p.max_out > 1) {
    Vector<uint8_t, V> packed;
#pragma unroll
    for (int i = 0; i < V; ++i) packed.v[i] = uint8_t(winner[i]);
    *reinterpret_cast<Vector<uint8_t, V>*>(p.winner + first) = packed;
  }
}

template <typename T, typename O, int V>
__global__ void __launch_bounds__(kThreads, 2) scale_bwd_kernel(const Sliced<ScaleBwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const ScaleBwd<A>& p = s.p;
  const Strip<V> strip(p.rows, p.plane, s.slices);
  const Constants<A> k = constants(p.formula, p.frozen);
  const bool has_norm = p.formula.power != Power::One;
  const int64_t scale = strip.row % p.scales;
  A n[V] = {}, inv_n[V], total[V] = {}, db = 0;
  if (strip.inside && has_norm) load(n, p.n, scale, true);
#pragma unroll
  for (int i = 0; i < V; ++i) inv_n[i] = safe_inverse(n[i]);
  by_power(p.formula.power, [&](auto power) {
    constexpr Power P = decltype(power)::value;
    for (int o = strip.slice; strip.inside && o < p.OG; o += s.slices) {
      const int64_t output = strip.plane * p.OG + o, at = output * p.plane + strip.pixel;
      const int64_t held = (scale - strip.pixel) * p.OG + int64_t(o) * p.plane + strip.pixel;
      A grad[V], v[V] = {}, u[V];
      load(grad, static_cast<const O*>(p.grad), at, true);
      if (P != Power::One) load(v, static_cast<const O*>(p.v), held, true);
#pragma unroll
      for (int i = 0; i < V; ++i) v[i] = restored<P>(p.formula, v[i], inv_n[i], k);
      if (P == Power::Two && p.map != nullptr) {
#pragma unroll
        for (int i = 0; i < V; ++i) grad[i] = mapped(p, int(strip.plane % p.G * p.OG) + o, grad[i], v[i]);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const auto [dl, dn] = partials<P>(v[i], v[i], inv_n[i], k);
        u[i] = grad[i] * dl;
        total[i] += grad[i] * dn;
        if (P == Power::General && p.db != nullptr) db += grad[i] * partial_b(v[i], inv_n[i], k);
      }
      if (p.dl != nullptr) {
        load(grad, static_cast<const O*>(p.dl), at, true);
#pragma unroll
        for (int i = 0; i < V; ++i) u[i] += grad[i];
      }
      Vector<uint8_t, V> winner{};
      if (p.max_out > 1) winner = *reinterpret_cast<const Vector<uint8_t, V>*>(p.winner + held);
      const int filter = int(strip.plane % p.G * p.OG + o) * p.max_out;
      for (int m = 0; m < p.max_out; ++m) {
        const A alpha = p.alpha != nullptr ? p.alpha[filter + m] : A(1);
        A values[V];
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = winner.v[i] == m ? u[i] * alpha : A(0);
        store(static_cast<T*>(p.u), (output * p.max_out + m) * p.plane + strip.pixel, values, true);
      }
    }
  });
  strip.add_slices(total);
  if (p.t != nullptr && strip.inside && strip.slice == 0) {
    A more[V] = {};
    if (p.dn != nullptr) load(more, p.dn, strip.row, true);
#pragma unroll
    for (int i = 0; i < V; ++i) total[i] = (total[i] + more[i]) * root_gradient(n[i], k);
    store(p.t, strip.row, total, true);
  }
  if (p.db != nullptr) {
    db = block_sum(db, kShared<V, A>);
    if (threadIdx.x == 0) p.db[blockIdx.x] = db;
  }
}

}  // namespace

template <typename A>
cudaError_t scale_fwd(const ScaleFwd<A>& p, cudaStream_t stream) {
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    return by_width<T>(p.plane, p.dtype, [&](auto width) {
      const dim3 grid(ceil_div(int64_t(p.rows) * p.OG, kThreads * width));
      return start(scale_fwd_kernel<T, O, width>, grid, kThreads, 0, p, stream);
    });
  });
}

template <typename A>
cudaError_t scale_bwd(const ScaleBwd<A>& p, cudaStream_t stream) {
  return by_dtypes<A>(p.dtype, p.out_dtype, [&](auto type, auto out) {
    using T = typename decltype(type)::type;
    using O = typename decltype(out)::type;
    return by_width<T>(p.plane, p.dtype, [&](auto width) {
      return start_strips<width>(scale_bwd_kernel<T, O, width>, p.rows, p.OG,
                                 kShared<width, A> + kThreads / 32 * sizeof(A), p, stream);
    });
  });
}

BCOS_FOR_BOTH_SUMS(scale_fwd, ScaleFwd);
BCOS_FOR_BOTH_SUMS(scale_bwd, ScaleBwd);

}  // namespace bcos::transform::cuda::planes
