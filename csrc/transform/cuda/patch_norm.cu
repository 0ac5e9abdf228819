// The patch norm beside a vendor convolution, and the sums of squares that a window is summed from.
//
// Of NHWC tensors, neighbouring lanes share a row (a pixel's channels of one group), as many as it has chunks
// of 16 bytes, up to a warp; NCHW tensors are walked as common/cuda/planes.cuh says.
#include "common/cuda/planes.cuh"
#include "transform/cuda/formula.cuh"
#include "transform/cuda/launch.h"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = planes::kThreads;

// The row that a thread works on, and its place among the
// row's lanes; rows past the last are worked on by nobody.
struct RowOfThread {
  int64_t row;
  int lane;
};

__device__ __forceinline__ RowOfThread row_of_thread(int lanes) {
  return {int64_t(blockIdx.x) * (kThreads / lanes) + threadIdx.x / lanes, int(threadIdx.x % lanes)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    patch_norm_squares_kernel(const PatchNormSquares<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const auto [row, lane] = row_of_thread(lanes);
  const bool inside = row < p.rows, vector = p.CG % kVector<T> == 0;
  const T* x = static_cast<const T*>(p.x) + row * p.CG;
  const T* v = p.v != nullptr ? static_cast<const T*>(p.v) + row * p.CG : x;
  A sum = 0;
  for (int c = lane * kVector<T>; inside && c < p.CG; c += lanes * kVector<T>) {
    A values[kVector<T>], others[kVector<T>];
    const auto load_chunk = [&](A(&out)[kVector<T>], const T* from) {
      if (vector) return load(out, from, c, true);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) out[i] = within(c + i, p.CG) ? widened(from[c + i]) : A(0);
    };
    load_chunk(values, x);
    if (v != x) load_chunk(others, v);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) sum += values[i] * (v != x ? others[i] : values[i]);
  }
  sum = lane_sum(sum, lanes);
  if (inside && lane == 0) p.out[row] = p.root ? root_norm(sum, constants(p.formula)) : sum;
}

template <typename A>
__global__ void __launch_bounds__(kThreads) patch_norm_fwd_kernel(const PatchNormFwd<A> p) {
  const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.rows) return;
  const int group = int(row % p.G);
  const Pixel at = pixel(int(row / p.G), p.window.OH, p.window.OW);
  const A sum = window_sum(p.squares, p.window, at, group, p.G);
  p.n[row] = p.root ? root_norm(sum, constants(p.formula)) : sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    patch_norm_bwd_kernel(const PatchNormBwd<SumsOf<T>> p, int lanes) {
  using A = SumsOf<T>;
  const auto [row, lane] = row_of_thread(lanes);
  const bool inside = row < p.rows, vector = p.CG % kVector<T> == 0;
  const Pixel at = pixel(int((inside ? row : 0) / p.G), p.window.H, p.window.W);
  A pooled = 0;  // the taps are shared out, too
  for (int tap = lane; inside && tap < p.window.KH * p.window.KW; tap += lanes) {
    const int64_t site = output_site(p.window, at, tap);
    if (site >= 0) pooled += p.t[site * p.G + row % p.G];
  }
  pooled = lane_sum(pooled, lanes);
  if (!inside) return;
  const A inverse = p.root != nullptr ? safe_inverse(p.root[row]) : A(1);
  const T* x = static_cast<const T*>(p.x) + row * p.CG;
  T* dx = static_cast<T*>(p.dx) + row * p.CG;
  for (int c = lane * kVector<T>; c < p.CG; c += lanes * kVector<T>) {
    if (vector) {
      A values[kVector<T>], sums[kVector<T>] = {};
      load(values, x, c, true);
      if (p.add) load(sums, dx, c, true);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) sums[i] += values[i] * inverse * pooled;
      store(dx, c, sums, true);
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i)
        if (within(c + i, p.CG))
          dx[c + i] = rounded<T>((p.add ? widened(dx[c + i]) : A(0)) + widened(x[c + i]) * inverse * pooled);
    }
  }
}

template <typename T, int V, bool SQUARES>
__global__ void __launch_bounds__(kThreads)
    planes_squares_kernel(const PatchNormSquares<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  const planes::Strip<V> strip(p.rows, p.plane, slices);
  const int64_t first = strip.plane * p.CG * p.plane + strip.pixel;
  const T *x = static_cast<const T*>(p.x), *v = static_cast<const T*>(p.v);
  A sums[V] = {};
#pragma unroll(SQUARES ? 4 : 2)
  for (int c = strip.slice; strip.inside && c < p.CG; c += slices) {
    A values[V], others[V];
    load(values, x, first + int64_t(c) * p.plane, true);
    if (!SQUARES) load(others, v, first + int64_t(c) * p.plane, true);
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] += values[i] * (SQUARES ? values[i] : others[i]);
  }
  strip.add_slices(sums);
  if (!strip.inside || strip.slice != 0) return;
  if (p.root) {
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] = root_norm(sums[i], constants(p.formula));
  }
  store(p.out, strip.row, sums, true);
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    planes_bwd_kernel(const PatchNormBwd<SumsOf<T>> p, int slices) {
  using A = SumsOf<T>;
  const Window& w = p.window;
  const planes::Strip<V> strip(p.rows, p.plane, slices);
  for (int i = threadIdx.x; i < strip.lanes * V && strip.first_row() + i < p.rows; i += kThreads)
    shared_store(i * int(sizeof(A)), pooled_sum(p.t, w, pixel(int(strip.first_row()) + i, w.H, w.W), 0, 1));
  barrier();
  if (!strip.inside) return;
  A pooled[V];
#pragma unroll
  for (int i = 0; i < V; ++i) pooled[i] = shared_load<A>((strip.lane * V + i) * int(sizeof(A)));
  const int64_t first = strip.plane * p.CG * p.plane + strip.pixel;
  const T* x = static_cast<const T*>(p.x) + first;
  T* dx = static_cast<T*>(p.dx) + first;
#pragma unroll 2
  for (int c = strip.slice; c < p.CG; c += slices) {
    const int64_t at = int64_t(c) * p.plane;
    A values[V], sums[V] = {};
    load(values, x, at, true);
    if (p.add) load(sums, dx, at, true);
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] += values[i] * pooled[i];
    store(dx, at, sums, true);
  }
}

}  // namespace

template <typename A>
cudaError_t patch_norm_squares(const PatchNormSquares<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.plane > 0)
    return planes::by_pixels<A>(p.dtype, p.plane, [&](auto type, auto width) {
      using T = typename decltype(type)::type;
      const auto kernel =
          p.v == nullptr ? planes_squares_kernel<T, width, true> : planes_squares_kernel<T, width, false>;
      return planes::start_strips<width>(kernel, p.rows, p.CG, planes::kShared<width, A>, p, stream);
    });
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int lanes = lanes_of(ceil_div(p.CG, kVector<T>));
    const dim3 grid(ceil_div(p.rows, kThreads / lanes));
    return start(patch_norm_squares_kernel<T>, grid, kThreads, 0, stream, p, lanes);
  });
}

template <typename A>
cudaError_t patch_norm_fwd(const PatchNormFwd<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  return start(patch_norm_fwd_kernel<A>, dim3(ceil_div(p.rows, kThreads)), kThreads, 0, stream, p);
}

template <typename A>
cudaError_t patch_norm_bwd(const PatchNormBwd<A>& p, cudaStream_t stream) {
  if (p.rows == 0) return cudaSuccess;
  if (p.plane > 0)
    return planes::by_pixels<A>(p.dtype, p.plane, [&](auto type, auto width) {
      using T = typename decltype(type)::type;
      return planes::start_strips<width>(planes_bwd_kernel<T, width>, p.rows, p.CG, planes::kShared<width, A>,
                                         p, stream);
    });
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int lanes = lanes_of(ceil_div(p.CG, kVector<T>));
    const dim3 grid(ceil_div(p.rows, kThreads / lanes));
    return start(patch_norm_bwd_kernel<T>, grid, kThreads, 0, stream, p, lanes);
  });
}

BCOS_FOR_BOTH_SUMS(patch_norm_squares, PatchNormSquares);
BCOS_FOR_BOTH_SUMS(patch_norm_fwd, PatchNormFwd);
BCOS_FOR_BOTH_SUMS(patch_norm_bwd, PatchNormBwd);

}  // namespace bcos::transform::cuda
