// Norms at positions, and over the channels of tokens, of rows: neighbouring lanes share a row, up to a warp,
// and of long rows the threads of a block.
#include "norm/cuda/launch.h"
#include "norm/cuda/positions.cuh"

namespace bcos::norm::cuda {
namespace {

constexpr int kTile = 32;  // rows whose grad and x the gradients of γ and β read again from a cache

template <typename P>
struct OfRows {
  P p;
  int lanes;    // of a row
  int columns;  // threads that share out the channels where they are added up over rows
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    positions_fwd_kernel(const OfRows<PositionsFwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PositionsFwd<A>& p = s.p;
  const int64_t row = int64_t(blockIdx.x) * (kThreads / s.lanes) + threadIdx.x / s.lanes;
  const int first = int(threadIdx.x % s.lanes) * V, step = s.lanes * V;
  const bool inside = row < int64_t(p.N) * p.P;
  const T* x = static_cast<const T*>(p.x);
  Running<A, 1> running;
  for (int c = first; inside && within(c, p.C); c += step) {
    A v[1][V];
    load(v[0], x, row * p.C + c, true);
    running.take(v);
  }
  join_threads<true>(running, 1, s.lanes);
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
__device__ __forceinline__ void row_gradient(const OfRows<PositionsBwd<SumsOf<T>>>& s, int64_t row,
                                             bool inside) {
  using A = SumsOf<T>;
  const PositionsBwd<A>& p = s.p;
  const int first = int(threadIdx.x % s.lanes) * V, step = s.lanes * V;
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
  if (has_sums) join_threads<true>(sums, 1, s.lanes);
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

// Adds the sums of the rows from `begin` to `end` to the block's share, or begins it with them.
template <typename T, int V>
__device__ __forceinline__ void add_columns(const OfRows<PositionsBwd<SumsOf<T>>>& s, int64_t begin,
                                            int64_t end, bool begins) {
  using A = SumsOf<T>;
  const PositionsBwd<A>& p = s.p;
  const int column = threadIdx.x % s.columns, slice = threadIdx.x / s.columns;
  for (int base = 0; base < p.C; base += s.columns * V) {
    const int c = base + column * V;
    RunningSums<A, V> sums;
    for (int64_t row = begin + slice; within(c, p.C) && row < end; row += kThreads / s.columns) {
      A grad[V], x[V];
      load_output<T>(grad, p.grad, p.out_dtype == Dtype::Float32, row * p.C + c);
      load(x, static_cast<const T*>(p.x), row * p.C + c, true);
      const A shift = shift_of(p.statistics, row), r = r_of(p.statistics, row);
#pragma unroll
      for (int i = 0; i < V; ++i) sums.add(i, grad[i], r * (x[i] - shift));
    }
    join_threads<false>(sums, s.columns, kThreads);
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
    positions_bwd_kernel(const OfRows<PositionsBwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PositionsBwd<A>& p = s.p;
  const int teams = kThreads / s.lanes, team = threadIdx.x / s.lanes;
  const int64_t rows = int64_t(p.N) * p.P;
  const int64_t begin = blockIdx.x * p.each, end = begin + p.each < rows ? begin + p.each : rows;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t tile_end = tile + kTile < end ? tile + kTile : end;
    for (int64_t row = tile; (p.dx != nullptr || p.var_gradient != nullptr) && row < tile_end; row += teams)
      row_gradient<T, V>(s, row + team, row + team < tile_end);
    if (p.partial != nullptr) add_columns<T, V>(s, tile, tile_end, tile == begin);
  }
}

// Lanes of a row of so many vectors: a warp where each has at most eight, else the block.
int row_lanes(int64_t vectors) {
  return vectors > 8 * 32 ? kThreads : lanes_of(vectors);
}

}  // namespace

namespace rows {

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream) {
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_vector<T>(p.C, [&](auto width) {
      const int lanes = row_lanes(ceil_div(p.C, width));
      return start(positions_fwd_kernel<T, width>, dim3(ceil_div(int64_t(p.N) * p.P, kThreads / lanes)),
                   kThreads, kShared<Running<A, 1>>, {p, lanes, 0}, stream);
    });
  });
}

template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream) {
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return by_vector<T>(p.C, [&](auto width) {
      const int64_t vectors = ceil_div(p.C, width);
      const OfRows<PositionsBwd<A>> s{p, row_lanes(vectors), lanes_of(vectors, kThreads)};
      return start(positions_bwd_kernel<T, width>, dim3(positions_shares(p)), kThreads,
                   kShared<RunningSums<A, width>>, s, stream);
    });
  });
}

}  // namespace rows

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream) {
  if (p.N == 0 || p.C == 0 || p.P == 0) return cudaSuccess;
  if (!is_output_of<A>(p.dtype, p.out_dtype) || !is_known<A>(p.weight.dtype) || !is_known<A>(p.bias.dtype))
    return cudaErrorInvalidValue;
  return p.planes ? planes::positions_fwd(p, stream) : rows::positions_fwd(p, stream);
}

template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream) {
  if (p.N == 0 || p.C == 0 || p.P == 0) return cudaSuccess;
  if (!is_output_of<A>(p.dtype, p.out_dtype) || !is_known<A>(p.weight.dtype)) return cudaErrorInvalidValue;
  return p.planes ? planes::positions_bwd(p, stream) : rows::positions_bwd(p, stream);
}

template <typename A>
int positions_shares(const PositionsBwd<A>& p) {
  return p.planes ? planes::positions_shares(p) : int(ceil_div(int64_t(p.N) * p.P, p.each));
}

BCOS_FOR_BOTH_SUMS(positions_fwd, PositionsFwd);
BCOS_FOR_BOTH_SUMS(positions_bwd, PositionsBwd);
template int positions_shares(const PositionsBwd<float>&);
template int positions_shares(const PositionsBwd<double>&);

}  // namespace bcos::norm::cuda
