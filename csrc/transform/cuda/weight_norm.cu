// The norm of each filter: what the products take as weights,
// and the gradient through the division. A block a filter.
#include "transform/cuda/launch.h"
#include "transform/cuda/weight_norm.cuh"

namespace bcos::transform::cuda {
namespace {

constexpr int kThreads = kSumming;

template <typename T>
__global__ void __launch_bounds__(kThreads) weight_norm_fwd_kernel(const WeightNormFwd<SumsOf<T>> p) {
  filter_norm<T>(p, int(blockIdx.x));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) weight_norm_bwd_kernel(const WeightNormBwd<SumsOf<T>> p) {
  using A = SumsOf<T>;
  const int K = p.CG * p.taps;
  const int64_t row = int64_t(blockIdx.x) * K;
  const T* w = static_cast<const T*>(p.w) + row;
  T* dw = static_cast<T*>(p.dw) + row;
  const bool unit = p.alpha != nullptr;
  A dot = 0;
  for (int k = threadIdx.x; k < K; k += kThreads) {
    A d = 0;
    for (int split = 0; split < p.splits; ++split)
      d += load_as<A>(p.partial, p.partial_dtype, int64_t(split) * p.F * K + row + k);
    if (!unit)
      dw[source(p, k)] = rounded<T>(d);
    else
      dot += d * widened(w[source(p, k)]);
    if (unit && p.splits > 1)
      store_as(p.partial, p.partial_dtype, row + k, d);  // read again by this thread alone
  }
  if (!unit) return;
  const A alpha = p.alpha[blockIdx.x], along = block_sum(dot, 0) * alpha * alpha;
  const A factor = p.raw ? A(1) : alpha;
  for (int k = threadIdx.x; k < K; k += kThreads) {
    const A d = load_as<A>(p.partial, p.partial_dtype, row + k);
    dw[source(p, k)] = rounded<T>(factor * (d - along * widened(w[source(p, k)])));
  }
}

}  // namespace

template <typename A>
cudaError_t weight_norm_fwd(const WeightNormFwd<A>& p, cudaStream_t stream) {
  if (p.F == 0) return cudaSuccess;
  if (!is_known<A>(p.operand_dtype)) return cudaErrorInvalidValue;
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return start(weight_norm_fwd_kernel<T>, dim3(p.F), kThreads, kThreads / 32 * sizeof(A), stream, p);
  });
}

template <typename A>
cudaError_t weight_norm_bwd(const WeightNormBwd<A>& p, cudaStream_t stream) {
  if (p.F == 0) return cudaSuccess;
  if (!is_known<A>(p.partial_dtype)) return cudaErrorInvalidValue;
  return by_dtype<A>(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return start(weight_norm_bwd_kernel<T>, dim3(p.F), kThreads, kThreads / 32 * sizeof(A), stream, p);
  });
}

BCOS_FOR_BOTH_SUMS(weight_norm_fwd, WeightNormFwd);
BCOS_FOR_BOTH_SUMS(weight_norm_bwd, WeightNormBwd);

}  // namespace bcos::transform::cuda
