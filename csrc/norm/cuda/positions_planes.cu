// Norms at positions of planes: neighbouring lanes have V neighbouring positions each, and the slices of a
// block share out their channels.
#include "norm/cuda/positions.cuh"

namespace bcos::norm::cuda::planes {
namespace {

using namespace bcos::cuda::planes;

constexpr int kPlaces = 4;  // channels that a thread has in flight

// The address of a channel's values at the positions of a strip.
template <int V>
__device__ __forceinline__ int64_t address(const Strip<V>& strip, int C, int P, int channel) {
  return (strip.plane * C + channel) * P + strip.pixel;
}

template <typename T, int V>
__global__ void __launch_bounds__(cuda::kThreads, cuda::kBlocks)
    positions_fwd_kernel(const Sliced<PositionsFwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PositionsFwd<A>& p = s.p;
  const Strip<V> strip(p.N * p.P, p.P, s.slices);
  const T* x = static_cast<const T*>(p.x);
  Running<A, V> running;
  int c = strip.inside ? strip.slice : p.C;
  for (; c + (kPlaces - 1) * s.slices < p.C; c += kPlaces * s.slices) {
    A v[kPlaces][V];
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) load(v[k], x, address(strip, p.C, p.P, c + k * s.slices), true);
    running.take(v);
  }
  for (; within(c, p.C); c += s.slices) {
    A v[1][V];
    load(v[0], x, address(strip, p.C, p.P, c), true);
    running.take(v);
  }
  join_threads<true>(running, strip.lanes, cuda::kThreads);
  if (!strip.inside) return;
  A mean[V], var[V], r[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    mean[i] = running.of[i].mean;
    var[i] = running.of[i].squares / running.count;
  }
  if (strip.slice == 0) {
    store(p.mean, strip.row, mean, true);
    if (p.var != nullptr) store(p.var, strip.row, var, true);
  }
  if (p.given != nullptr) load(var, p.given, strip.row, true);
#pragma unroll
  for (int i = 0; i < V; ++i) r[i] = inverse_std(var[i], p.eps);
  for (c = strip.slice; within(c, p.C); c += s.slices) {
    const A gamma = value_of(p.weight, c, A(1)), beta = value_of(p.bias, c, A(0));
    const int64_t at = address(strip, p.C, p.P, c);
    A v[V];
    load(v, x, at, true);
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = affine(mean[i], r[i], gamma, beta, p.centered)(v[i]);
    store_output<T>(p.y, p.out_dtype == Dtype::Float32, at, v);
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(cuda::kThreads, cuda::kBlocks)
    positions_bwd_kernel(const Sliced<PositionsBwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PositionsBwd<A>& p = s.p;
  const Strip<V> strip(p.N * p.P, p.P, s.slices);
  const bool wide = p.out_dtype == Dtype::Float32;
  const T* x = static_cast<const T*>(p.x);
  const bool has_x = p.x != nullptr, second = p.var_gradient != nullptr;
  const bool has_sums = second || (p.dx != nullptr && (!p.frozen || p.statistics.centered));
  A mean[V] = {}, var[V], r[V] = {}, shift[V];
  if (strip.inside) {
    load(var, p.statistics.var, strip.row, true);
    if (has_x) load(mean, p.statistics.mean, strip.row, true);
#pragma unroll
    for (int i = 0; i < V; ++i) r[i] = inverse_std(var[i], p.statistics.eps);
  }
#pragma unroll
  for (int i = 0; i < V; ++i) shift[i] = p.statistics.centered ? mean[i] : A(0);
  RunningSums<A, V> sums;
  for (int c = strip.slice; has_sums && strip.inside && within(c, p.C); c += s.slices) {
    const A gamma = value_of(p.weight, c, A(1));
    const int64_t at = address(strip, p.C, p.P, c);
    A grad[V], v[V] = {};
    load_output<T>(grad, p.grad, wide, at);
    if (has_x) load(v, x, at, true);
#pragma unroll
    for (int i = 0; i < V; ++i) sums.add(i, gamma * grad[i], v[i] - shift[i]);
  }
  if (has_sums) join_threads<true>(sums, strip.lanes, cuda::kThreads);
  if (second && strip.inside && strip.slice == 0) {
#pragma unroll
    for (int i = 0; i < V; ++i) var[i] = var_gradient(r[i], sums.of[i].products);
    store(p.var_gradient, strip.row, var, true);
  }
  A dvar[V] = {};
  if (p.dvar != nullptr && strip.inside) load(dvar, p.dvar, strip.row, true);
  Gradient<A> of[V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    of[i] =
        gradient(r[i], A(1), sums.of[i].products, sums.of[i].grads, A(p.C), p.statistics.centered, p.frozen);
    of[i].of_x += of_var(dvar[i], A(p.C));
  }
  const bool moves = !p.frozen || p.dvar != nullptr;
  // Every channel is that of a whole number of warps, each of which writes a share.
  const int64_t share = int64_t(blockIdx.x) * (strip.lanes / 32) + strip.lane / 32;
  for (int c = strip.slice; c < p.C; c += s.slices) {
    const A gamma = value_of(p.weight, c, A(1));
    const int64_t at = address(strip, p.C, p.P, c);
    A grad[V] = {}, v[V] = {};
    if (strip.inside) {
      load_output<T>(grad, p.grad, wide, at);
      if (has_x) load(v, x, at, true);
    }
    if (p.partial != nullptr) {
      RunningSums<A, 1> mine;
#pragma unroll
      for (int i = 0; i < V; ++i) mine.add(0, grad[i], r[i] * (v[i] - shift[i]));
      join_threads<false>(mine, 1, 32);
      if (strip.lane % 32 == 0) p.partial[share * p.C + c] = mine.of[0];
    }
    if (p.dx == nullptr || !strip.inside) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) grad[i] = of[i](gamma * grad[i], moves ? v[i] - mean[i] : A(0));
    store(static_cast<T*>(p.dx), at, grad, true);
  }
}

}  // namespace

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream) {
  return by_pixels<A>(p.dtype, p.P, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    return start_strips<width>(positions_fwd_kernel<T, width>, p.N * p.P, p.C,
                               cuda::kShared<Running<A, width>>, p, stream);
  });
}

template <typename A>
int positions_shares(const PositionsBwd<A>& p) {
  const int slices = slices_of(p.C);
  return int(strip_grid(p.N * p.P, slices, width_of(p.P, p.dtype)).x) * (cuda::kThreads / slices / 32);
}

template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream) {
  return by_pixels<A>(p.dtype, p.P, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    return start_strips<width>(positions_bwd_kernel<T, width>, p.N * p.P, p.C,
                               cuda::kShared<RunningSums<A, width>>, p, stream);
  });
}

BCOS_FOR_BOTH_SUMS(positions_fwd, PositionsFwd);
template int positions_shares(const PositionsBwd<float>&);
template int positions_shares(const PositionsBwd<double>&);
BCOS_FOR_BOTH_SUMS(positions_bwd, PositionsBwd);

}  // namespace bcos::norm::cuda::planes
