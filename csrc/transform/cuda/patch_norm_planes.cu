// The patch norm's helpers on NCHW tensors.
#include "transform/cuda/planes.cuh"

namespace bcos::transform::cuda::planes {
namespace {

template <typename T, int V, bool SQUARES>
__global__ void __launch_bounds__(kThreads)
    patch_norm_squares_kernel(const Sliced<PatchNormSquares<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PatchNormSquares<A>& p = s.p;
  const Strip<V> strip(p.rows, p.plane, s.slices);
  const int64_t first = strip.plane * p.CG * p.plane + strip.pixel;
  const T *x = static_cast<const T*>(p.x), *v = static_cast<const T*>(p.v);
  A sums[V] = {};
#pragma unroll(SQUARES ? 4 : 2)
  for (int c = strip.slice; strip.inside && c < p.CG; c += s.slices) {
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
    patch_norm_bwd_kernel(const Sliced<PatchNormBwd<SumsOf<T>>> s) {
  using A = SumsOf<T>;
  const PatchNormBwd<A>& p = s.p;
  const Window& w = p.window;
  const Strip<V> strip(p.rows, p.plane, s.slices);
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
  for (int c = strip.slice; c < p.CG; c += s.slices) {
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
  return by_pixels<A>(p.dtype, p.plane, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    const auto kernel = p.v == nullptr ? patch_norm_squares_kernel<T, width, true>
                                       : patch_norm_squares_kernel<T, width, false>;
    return start_strips<width>(kernel, p.rows, p.CG, kShared<width, A>, p, stream);
  });
}

template <typename A>
cudaError_t patch_norm_bwd(const PatchNormBwd<A>& p, cudaStream_t stream) {
  return by_pixels<A>(p.dtype, p.plane, [&](auto type, auto width) {
    using T = typename decltype(type)::type;
    return start_strips<width>(patch_norm_bwd_kernel<T, width>, p.rows, p.CG, kShared<width, A>, p, stream);
  });
}

BCOS_FOR_BOTH_SUMS(patch_norm_squares, PatchNormSquares);
BCOS_FOR_BOTH_SUMS(patch_norm_bwd, PatchNormBwd);

}  // namespace bcos::transform::cuda::planes
