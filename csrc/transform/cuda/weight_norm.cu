// The norm of each filter: what the products take as weights,
// and the gradient through the division. A block a filter.
#include "common/cuda/primitives.cuh"
#include "transform/cuda/launch.h"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = 128;

// Where value k of a filter in OHWI lies in the weight's own order.
template <typename P>
__device__ __forceinline__ int source(const P& p, int k) {
  return p.ohwi ? k : k % p.CG * p.taps + k / p.CG;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) weight_norm_fwd_kernel(const WeightNormFwd p) {
  const int K = p.CG * p.taps;
  const int64_t row = int64_t(blockIdx.x) * K;
  const T* w = static_cast<const T*>(p.w) + row;
  const bool vector = K % kVector<T> == 0;
  float squares = 0;
  for (int k = threadIdx.x * kVector<T>; k < K; k += kThreads * kVector<T>) {
    float values[kVector<T>];
    if (vector) {
      load(values, w, k, true);
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) values[i] = within(k + i, K) ? to_float(w[k + i]) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) squares += values[i] * values[i];
  }
  const float norm = std::sqrt(block_sum(squares, 0));
  if (threadIdx.x == 0) p.alpha[blockIdx.x] = safe_inverse(norm);
  if (p.operand == nullptr) return;
  const float divisor = p.raw || norm == 0 ? 1.f : norm;
  for (int k = threadIdx.x; k < K; k += kThreads)
    store_as(p.operand, p.operand_dtype, row + k, to_float(w[source(p, k)]) / divisor);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) weight_norm_bwd_kernel(const WeightNormBwd p) {
  const int K = p.CG * p.taps;
  const int64_t row = int64_t(blockIdx.x) * K;
  const T* w = static_cast<const T*>(p.w) + row;
  T* dw = static_cast<T*>(p.dw) + row;
  const bool unit = p.alpha != nullptr;
  float dot = 0;
  for (int k = threadIdx.x; k < K; k += kThreads) {
    float d = 0;
    for (int split = 0; split < p.splits; ++split)
      d += load_as(p.partial, p.partial_dtype, int64_t(split) * p.F * K + row + k);
    if (!unit)
      dw[source(p, k)] = rounded<T>(d);
    else
      dot += d * to_float(w[source(p, k)]);
    if (unit && p.splits > 1)
      store_as(p.partial, p.partial_dtype, row + k, d);  // read again by this thread alone
  }
  if (!unit) return;
  const float alpha = p.alpha[blockIdx.x], along = block_sum(dot, 0) * alpha * alpha;
  const float factor = p.raw ? 1.f : alpha;
  for (int k = threadIdx.x; k < K; k += kThreads) {
    const float d = load_as(p.partial, p.partial_dtype, row + k);
    dw[source(p, k)] = rounded<T>(factor * (d - along * to_float(w[source(p, k)])));
  }
}

}  // namespace

cudaError_t weight_norm_fwd(const WeightNormFwd& p, cudaStream_t stream) {
  if (p.F == 0) return cudaSuccess;
  if (!is_known(p.operand_dtype)) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return start(weight_norm_fwd_kernel<T>, dim3(p.F), kThreads, kThreads / 32 * 4, p, stream);
  });
}

cudaError_t weight_norm_bwd(const WeightNormBwd& p, cudaStream_t stream) {
  if (p.F == 0) return cudaSuccess;
  if (!is_known(p.partial_dtype)) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return start(weight_norm_bwd_kernel<T>, dim3(p.F), kThreads, kThreads / 32 * 4, p, stream);
  });
}

}  // namespace bcos::transform::cuda
