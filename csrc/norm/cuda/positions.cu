// Norms at positions, and over the channels of tokens. Of rows, neighbouring lanes share one, up to a warp,
// and of long rows the threads of a block. Of planes, neighbouring lanes have V neighbouring positions each,
// and the slices of a block share out their channels.
#include "common/cuda/planes.cuh"
#include "norm/cuda/launch.h"
#include "norm/cuda/reduce.cuh"

namespace bcos::norm::cuda {
namespace {

constexpr int kTile = 32;  // rows whose grad and x the gradients of γ and β read again from a cache

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rows_fwd_kernel(const PositionsFwd<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes;
  const int first = int(threadIdx.x % lanes) * V, step = lanes * V;
  const bool inside = row < int64_t(p.N) * p.P;
  const T* x = static_cast<const T*>(p.x);
  Running<A, 1> running;
  for (int c = first; inside && within(c, p.C); c += step) {
    A v[1][V];
    load(v[0], x, row * p.C + c, true);
    running.take(v);
  }
  join_threads<true>(running, 1, lanes);
  if (!inside) return;
  const A mean = running.of[0].mean, var = running.of[0].squares / running.count;
  if (first == 0) {
    p.mean[row] = mean;
    if (p.var != nullptr) p.var[row] = var;
  }
  const A r = inverse_std(p.given != nullptr ? p.given[row] : var, p.eps);
  for (int c = first; within(c, p.C); c += step) {
    A v[V], gamma[V], beta[V];
    load(v, x, row * p.C + c, true);
    load_factor(gamma, p.weight, c, A(1));
    load_factor(beta, p.bias, c, A(0));
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = affine(mean, r, gamma[i], beta[i], p.centered)(v[i]);
    store_output<T>(p.y, p.out_dtype == Dtype::Float32, row * p.C + c, v);
  }
}

// dx of one row, or its gradient of var, by its lanes. All threads of the block take part; those of rows past
// the last do nothing.
template <typename T, int V>
__device__ __forceinline__ void row_gradient(const PositionsBwd<SumsOf<T>>& p, int lanes, int64_t row,
                                             bool inside) {
  using A = SumsOf<T>;
  const int first = int(threadIdx.x % lanes) * V, step = lanes * V;
  const bool wide = p.out_dtype == Dtype::Float32;
  const T* x = static_cast<const T*>(p.x);
  const bool second = p.var_gradient != nullptr, has_x = !p.frozen || p.dvar != nullptr || second;
  const bool has_sums = !p.frozen || p.statistics.centered || second;
  const A shift = inside && has_x ? shift_of(p.statistics, row) : A(0);
  RunningSums<A, 1> sums;
  for (int c = first; has_sums && inside && within(c, p.C); c += step) {
    A grad[V], gamma[V], v[V] = {};
    load_factor(gamma, p.weight, c, A(1));
    load_output<T>(grad, p.grad, wide, row * p.C + c);
    if (has_x) load(v, x, row * p.C + c, true);
#pragma unroll
    for (int i = 0; i < V; ++i) sums.add(0, gamma[i] * grad[i], v[i] - shift);
  }
  if (has_sums) join_threads<true>(sums, 1, lanes);
  if (!inside) return;
  const A r = r_of(p.statistics, row);
  if (second) {
    if (first == 0) p.var_gradient[row] = var_gradient(r, sums.of[0].products);
    return;
  }
  Gradient<A> of =
      gradient(r, A(1), sums.of[0].products, sums.of[0].grads, A(p.C), p.statistics.centered, p.frozen);
  if (p.dvar != nullptr) of.of_x += of_var(p.dvar[row], A(p.C));
  const A mean = has_x ? p.statistics.mean[row] : A(0);
  for (int c = first; within(c, p.C); c += step) {
    A grad[V], gamma[V], v[V];
    load_factor(gamma, p.weight, c, A(1));
    load_output<T>(grad, p.grad, wide, row * p.C + c);
    if (has_x) load(v, x, row * p.C + c, true);
#pragma unroll
    for (int i = 0; i < V; ++i) grad[i] = of(gamma[i] * grad[i], has_x ? v[i] - mean : A(0));
    store(static_cast<T*>(p.dx), row * p.C + c, grad, true);
  }
}

// Adds the sums of the rows from `begin` to `end` to the block's share, or begins it with them. `columns`
// threads share out the channels.
template <typename T, int V>
__device__ __forceinline__ void add_columns(const PositionsBwd<SumsOf<T>>& p, int columns, int64_t begin,
                                            int64_t end, bool begins) {
  using A = SumsOf<T>;
  const int column = threadIdx.x % columns, slice = threadIdx.x / columns;
  for (int base = 0; base < p.C; base += columns * V) {
    const int c = base + column * V;
    RunningSums<A, V> sums;
    for (int64_t row = begin + slice; within(c, p.C) && row < end; row += kThreads / columns) {
      A grad[V], x[V];
      load_output<T>(grad, p.grad, p.out_dtype == Dtype::Float32, row * p.C + c);
      load(x, static_cast<const T*>(p.x), row * p.C + c, true);
      const A shift = shift_of(p.statistics, row), r = r_of(p.statistics, row);
#pragma unroll
      for (int i = 0; i < V; ++i) sums.add(i, grad[i], r * (x[i] - shift));
    }
    join_threads<false>(sums, columns, kThreads);
    if (slice > 0 || !within(c, p.C)) continue;
    Sums<A>* share = p.partial + int64_t(blockIdx.x) * p.C + c;
#pragma unroll
    for (int i = 0; i < V; ++i)
      share[i] = begins ? sums.of[i]
                        : Sums<A>{share[i].products + sums.of[i].products, share[i].grads + sums.of[i].grads};
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    rows_bwd_kernel(const PositionsBwd<SumsOf<T>> p, int lanes, int columns) {
  const int teams = kThreads / lanes, team = threadIdx.x / lanes;
  const int64_t rows = int64_t(p.N) * p.P;
  const int64_t begin = blockIdx.x * p.each, end = begin + p.each < rows ? begin + p.each : rows;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t tile_end = tile + kTile < end ? tile + kTile : end;
    for (int64_t row = tile; (p.dx != nullptr || p.var_gradient != nullptr) && row < tile_end; row += teams)
      row_gradient<T, V>(p, lanes, row + team, row + team < tile_end);
    if (p.partial != nullptr) add_columns<T, V>(p, columns, tile, tile_end, tile == begin);
  }
}

// Lanes of a row of so many vectors: a warp where each has at most eight, else the block.
int row_lanes(int64_t vectors) {
  return vectors > 8 * 32 ? kThreads : lanes_of(vectors);
}

constexpr int kPlaces = 4;  // channels that a thread has in flight

// The address of a channel's values at the positions of a strip.
template <int V>
__device__ __forceinline__ int64_t address(const planes::Strip<V>& strip, int C, int P, int channel) {
  return (strip.plane * C + channel) * P + strip.pixel;
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    planes_fwd_kernel(const PositionsFwd<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  const planes::Strip<V> strip(p.N * p.P, p.P, slices);
  const T* x = static_cast<const T*>(p.x);
  Running<A, V> running;
  int c = strip.inside ? strip.slice : p.C;
  for (; c + (kPlaces - 1) * slices < p.C; c += kPlaces * slices) {
    A v[kPlaces][V];
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) load(v[k], x, address(strip, p.C, p.P, c + k * slices), true);
    running.take(v);
  }
  for (; within(c, p.C); c += slices) {
    A v[1][V];
    load(v[0], x, address(strip, p.C, p.P, c), true);
    running.take(v);
  }
  join_threads<true>(running, strip.lanes, kThreads);
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
  for (c = strip.slice; within(c, p.C); c += slices) {
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
__global__ void __launch_bounds__(kThreads, kBlocks)
    planes_bwd_kernel(const PositionsBwd<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  const planes::Strip<V> strip(p.N * p.P, p.P, slices);
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
  for (int c = strip.slice; has_sums && strip.inside && within(c, p.C); c += slices) {
    const A gamma = value_of(p.weight, c, A(1));
    const int64_t at = address(strip, p.C, p.P, c);
    A grad[V], v[V] = {};
    load_output<T>(grad, p.grad, wide, at);
    if (has_x) load(v, x, at, true);
#pragma unroll
    for (int i = 0; i < V; ++i) sums.add(i, gamma * grad[i], v[i] - shift[i]);
  }
  if (has_sums) join_threads<true>(sums, strip.lanes, kThreads);
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
  for (int c = strip.slice; c < p.C; c += slices) {
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
  if (p.N == 0 || p.C == 0 || p.P == 0) return cudaSuccess;
  if (!is_output_of<A>(p.dtype, p.out_dtype) || !is_known<A>(p.weight.dtype) || !is_known<A>(p.bias.dtype))
    return cudaErrorInvalidValue;
  if (p.planes)
    return planes::by_pixels<A>(p.dtype, p.P, [&](auto type, auto width) {
      using T = typename decltype(type)::type;
      return planes::start_strips<width>(planes_fwd_kernel<T, width>, p.N * p.P, p.C,
                                         kShared<Running<A, width>>, p, stream);
    });
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_vector<T>(p.C, [&](auto width) {
      const int lanes = row_lanes(ceil_div(p.C, width));
      return start(rows_fwd_kernel<T, width>, dim3(ceil_div(int64_t(p.N) * p.P, kThreads / lanes)), kThreads,
                   kShared<Running<A, 1>>, stream, p, lanes);
    });
  });
}

template <typename A>
int positions_shares(const PositionsBwd<A>& p) {
  if (!p.planes) return int(ceil_div(int64_t(p.N) * p.P, p.each));
  const int slices = planes::slices_of(p.C), width = planes::width_of(p.P, p.dtype);
  return int(planes::strip_grid(p.N * p.P, slices, width).x) * (kThreads / slices / 32);
}

template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream) {
  if (p.N == 0 || p.C == 0 || p.P == 0) return cudaSuccess;
  if (!is_output_of<A>(p.dtype, p.out_dtype) || !is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  if (p.planes)
    return planes::by_pixels<A>(p.dtype, p.P, [&](auto type, auto width) {
      using T = typename decltype(type)::type;
      return planes::start_strips<width>(planes_bwd_kernel<T, width>, p.N * p.P, p.C,
                                         kShared<RunningSums<A, width>>, p, stream);
    });
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_vector<T>(p.C, [&](auto width) {
      const int64_t vectors = ceil_div(p.C, width);
      return start(rows_bwd_kernel<T, width>, dim3(positions_shares(p)), kThreads,
                   kShared<RunningSums<A, width>>, stream, p, row_lanes(vectors),
                   lanes_of(vectors, kThreads));
    });
  });
}

BCOS_FOR_BOTH_SUMS(positions_fwd, PositionsFwd);
BCOS_FOR_BOTH_SUMS(positions_bwd, PositionsBwd);
template int positions_shares(const PositionsBwd<float>&);
template int positions_shares(const PositionsBwd<double>&);

}  // namespace bcos::norm::cuda
