// Running moments and sums of a thread, and how threads join theirs: in a fixed order, alike in every run.
#pragma once

#include "common/cuda/primitives.cuh"
#include "norm/cuda/params.h"

namespace bcos::norm::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocks = 2;  // of a multiprocessor, at least: they leave registers enough

// The moments of `count` values of each of K channels.
template <typename A, int K>
struct Running {
  A count = 0;
  Moments<A> of[K] = {};

  __device__ __forceinline__ void join(const Running& later) {
    if (count == 0) {
      *this = later;
      return;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) of[k] = joined(of[k], count, later.of[k], later.count);
    count += later.count;
  }

  // Takes in V neighbouring values of each of R places; they belong to K channels: to one, or to a channel
  // each.
  template <int R, int V>
  __device__ __forceinline__ void take(const A (&v)[R][V]) {
    static_assert(K == 1 || K == V);
    constexpr A each = R * (V / K);
    Running batch;
    batch.count = each;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const A near = v[0][k];  // one of the values, from which distances are exact where all are near
      A sum = 0, squares = 0;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = k; i < V; i += K) sum += v[r][i] - near;
      const A mean = sum * (1 / each);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = k; i < V; i += K) {
          const A distance = (v[r][i] - near) - mean;
          squares += distance * distance;
        }
      batch.of[k] = moments_of(near, mean, squares);
    }
    join(batch);
  }

  __device__ __forceinline__ Running exchanged(int mask) const {
    Running other;
    other.count = shuffle_xor(count, mask);
#pragma unroll
    for (int k = 0; k < K; ++k)
      other.of[k] = {shuffle_xor(of[k].mean, mask), shuffle_xor(of[k].rest, mask),
                     shuffle_xor(of[k].squares, mask)};
    return other;
  }
};

// Sums of each of K channels.
template <typename A, int K>
struct RunningSums {
  Sums<A> of[K] = {};

  __device__ __forceinline__ void add(int k, A grad, A from_shift) {
    of[k].products += grad * from_shift;
    of[k].grads += grad;
  }
  __device__ __forceinline__ void join(const RunningSums& later) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      of[k].products += later.of[k].products;
      of[k].grads += later.of[k].grads;
    }
  }
  __device__ __forceinline__ RunningSums exchanged(int mask) const {
    RunningSums other;
#pragma unroll
    for (int k = 0; k < K; ++k)
      other.of[k] = {shuffle_xor(of[k].products, mask), shuffle_xor(of[k].grads, mask)};
    return other;
  }
};

// The threads of a block whose indices differ in the bits from `low` to below `high` join what they have;
// `high` is at most a warp, or the block. Afterwards each of them has all of it; where they are several
// warps, those outside of the first have it only if EVERYWHERE. All threads of the block take part.
template <bool EVERYWHERE, typename R>
__device__ __forceinline__ void join_threads(R& running, int low, int high) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
#pragma unroll 1  // it is run once, and long
  for (int mask = low; mask < high && mask < 32; mask *= 2) {
    R later = running.exchanged(mask);
    if (lane & mask) {
      const R mine = running;
      running = later;
      later = mine;
    }
    running.join(later);
  }
  if (high <= 32) return;
  barrier();  // what was there before has been read
  shared_store(thread * uint32_t(sizeof(R)), running);
  barrier();
  const int stride = low > 32 ? low / 32 : 1;
  if (!EVERYWHERE && warp >= stride) return;
  running = shared_load<R>((warp % stride * 32 + lane) * uint32_t(sizeof(R)));
#pragma unroll 1
  for (int other = warp % stride + stride; other < kWarps; other += stride)
    running.join(shared_load<R>((other * 32 + lane) * uint32_t(sizeof(R))));
}

// Shared memory of a block for join_threads.
template <typename R>
constexpr size_t kShared = kThreads * sizeof(R);

// The values of K channels, a power of two that divides `first`; `missing` where there are none.
template <typename A, int K>
__device__ __forceinline__ void load_factor(A (&out)[K], const Factor& factor, int first, A missing) {
  if (factor.data == nullptr) {
#pragma unroll
    for (int k = 0; k < K; ++k) out[k] = missing;
  } else if constexpr (std::is_same_v<A, double>) {
    load(out, static_cast<const double*>(factor.data), first, true);
  } else if (factor.dtype == Dtype::Float32) {
    load(out, static_cast<const float*>(factor.data), first, true);
  } else if (factor.dtype == Dtype::Float16) {
    load(out, static_cast<const __half*>(factor.data), first, true);
  } else {
    load(out, static_cast<const __nv_bfloat16*>(factor.data), first, true);
  }
}

template <typename A>
__device__ __forceinline__ A value_of(const Factor& factor, int channel, A missing) {
  A value[1];
  load_factor(value, factor, channel, missing);
  return value[0];
}

template <typename A>
__device__ __forceinline__ A shift_of(const Statistics<A>& s, int64_t set) {
  return s.centered ? s.mean[set] : A(0);
}

template <typename A>
__device__ __forceinline__ A r_of(const Statistics<A>& s, int64_t set) {
  return inverse_std(s.var[set], s.eps);
}

}  // namespace bcos::norm::cuda
