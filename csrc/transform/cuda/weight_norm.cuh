// The norm of one filter, by a block.
#pragma once

#include "common/cuda/primitives.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

constexpr int kSumming = 128;  // threads that form the sum, so that blocks of any size form the same bits

// Where value k of a filter in OHWI lies in the weight's own order.
template <typename P>
__device__ __forceinline__ int source(const P& p, int k) {
  return p.ohwi ? k : k % p.CG * p.taps + k / p.CG;
}

// What WeightNormFwd says, of one filter; uses a value of shared memory a warp.
template <typename T>
__device__ __forceinline__ void filter_norm(const WeightNormFwd<SumsOf<T>>& p, int filter) {
  using A = SumsOf<T>;
  const int K = p.CG * p.taps, threads = int(blockDim.x), thread = int(threadIdx.x);
  const int64_t row = int64_t(filter) * K;
  const T* w = static_cast<const T*>(p.w) + row;
  const bool vector = K % kVector<T> == 0;
  A squares = 0;
  for (int k = thread * kVector<T>; thread < kSumming && k < K; k += kSumming * kVector<T>) {
    A values[kVector<T>];
    if (vector) {
      load(values, w, k, true);
    } else {
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) values[i] = within(k + i, K) ? widened(w[k + i]) : A(0);
    }
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) squares += values[i] * values[i];
  }
  const A norm = std::sqrt(block_sum(squares, 0));
  if (thread == 0) p.alpha[filter] = safe_inverse(norm);
  if (p.operand == nullptr) return;
  const A divisor = p.raw || norm == 0 ? A(1) : norm;
  for (int k = thread; k < K; k += threads)
    store_as(p.operand, p.operand_dtype, row + k, widened(w[source(p, k)]) / divisor);
}

}  // namespace bcos::transform::cuda
