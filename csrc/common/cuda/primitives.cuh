// Small parts that every kernel is built of: conversions, 16-byte accesses, sums over lanes and blocks.
#pragma once

#include <type_traits>

#include "common/cuda/dtype.h"
#include "common/cuda/intrinsics.cuh"
#include "common/macros.h"

namespace bcos::cuda {

template <typename T>
constexpr int kVector = 16 / int(sizeof(T));  // values of a 16-byte access

template <typename T, int COUNT = kVector<T>>
struct alignas(COUNT * sizeof(T)) Vector {
  T v[COUNT];
};

__device__ __forceinline__ float to_float(float v) {
  return v;
}
__device__ __forceinline__ float to_float(__half v) {
  return __half2float(v);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <typename T>
__device__ __forceinline__ T rounded(float v) {
  if constexpr (sizeof(T) == 4)
    return v;
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(v);
  else
    return __float2bfloat16_rn(v);
}

__device__ __forceinline__ bool is_finite(float v) {
  return v * 0 == 0;
}

// The half-type value in the lower 16 bits.
template <typename T>
__device__ __forceinline__ T low_half(uint32_t word) {
  if constexpr (std::is_same_v<T, __half>)
    return __ushort_as_half(uint16_t(word));
  else
    return __ushort_as_bfloat16(uint16_t(word));
}

// Values whose dtype is known at run time only, for tensors that are small beside the others. The dtype is
// one that `is_known`: a further case would cost the kernels registers.
__device__ __forceinline__ float load_as(const void* p, Dtype dtype, int64_t at) {
  switch (dtype) {
    case Dtype::Float16:
      return to_float(static_cast<const __half*>(p)[at]);
    case Dtype::BFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(p)[at]);
    default:
      return static_cast<const float*>(p)[at];
  }
}

__device__ __forceinline__ void store_as(void* p, Dtype dtype, int64_t at, float v) {
  switch (dtype) {
    case Dtype::Float16:
      static_cast<__half*>(p)[at] = rounded<__half>(v);
      break;
    case Dtype::BFloat16:
      static_cast<__nv_bfloat16*>(p)[at] = rounded<__nv_bfloat16>(v);
      break;
    default:
      static_cast<float*>(p)[at] = v;
  }
}

// COUNT values, a power of two, from p + at as fp32; up to 16 bytes at a time where `vector`, which asks for
// that alignment.
template <int COUNT, typename T>
__device__ __forceinline__ void load(float (&out)[COUNT], const T* p, int64_t at, bool vector) {
  constexpr int EACH = COUNT < kVector<T> ? COUNT : kVector<T>;
  if (vector) {
#pragma unroll
    for (int i = 0; i < COUNT; i += EACH) {
      const auto packed = *reinterpret_cast<const Vector<T, EACH>*>(p + at + i);
#pragma unroll
      for (int j = 0; j < EACH; ++j) out[i + j] = to_float(packed.v[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) out[i] = to_float(p[at + i]);
  }
}

template <int COUNT, typename T>
__device__ __forceinline__ void store(T* p, int64_t at, const float (&values)[COUNT], bool vector) {
  constexpr int EACH = COUNT < kVector<T> ? COUNT : kVector<T>;
  if (vector) {
#pragma unroll
    for (int i = 0; i < COUNT; i += EACH) {
      Vector<T, EACH> packed;
#pragma unroll
      for (int j = 0; j < EACH; ++j) packed.v[j] = rounded<T>(values[i + j]);
      *reinterpret_cast<Vector<T, EACH>*>(p + at + i) = packed;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) p[at + i] = rounded<T>(values[i]);
  }
}

// The sum over `lanes` (a power of two) neighbouring lanes, in each of them.
__device__ __forceinline__ float lane_sum(float v, int lanes = 32) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// The sum over the block, in every thread and alike in every
// run; uses 4 bytes of shared memory a warp, from `at`.
__device__ __forceinline__ float block_sum(float v, uint32_t at) {
  v = lane_sum(v);
  if (threadIdx.x % 32 == 0) shared_store(at + threadIdx.x / 32 * 4, v);
  barrier();
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += shared_load<float>(at + warp * 4);
  return total;
}

template <typename T>
struct Type {
  using type = T;
};

// f of the dtype as a type, on the host.
template <typename F>
cudaError_t by_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::Float32:
      return f(Type<float>{});
    case Dtype::Float16:
      return f(Type<__half>{});
    case Dtype::BFloat16:
      return f(Type<__nv_bfloat16>{});
  }
  return cudaErrorInvalidValue;
}

// f of both; `out` is `dtype` or fp32.
template <typename F>
cudaError_t by_dtypes(Dtype dtype, Dtype out, F&& f) {
  return by_dtype(dtype, [&](auto type) {
    if (out == dtype) return f(type, type);
    return out == Dtype::Float32 ? f(type, Type<float>{}) : cudaErrorInvalidValue;
  });
}

BCOS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Lanes that share a row of `values`, 16 bytes each at a time: a power of two up to a warp.
template <typename T>
int lanes_of_row(int values) {
  int lanes = 1;
  while (lanes < 32 && lanes * kVector<T> < values) lanes *= 2;
  return lanes;
}

}  // namespace bcos::cuda
