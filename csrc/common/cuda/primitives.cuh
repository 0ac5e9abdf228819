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

// A value in the type of its sums.
template <typename T>
__device__ __forceinline__ SumsOf<T> widened(T v) {
  if constexpr (std::is_same_v<T, double>)
    return v;
  else
    return to_float(v);
}

template <typename T>
__device__ __forceinline__ T rounded(SumsOf<T> v) {
  if constexpr (sizeof(T) >= 4)
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
// one that `is_known<A>`: a further case would cost the kernels registers.
template <typename A = float>
__device__ __forceinline__ A load_as(const void* p, Dtype dtype, int64_t at) {
  if constexpr (std::is_same_v<A, double>) return static_cast<const double*>(p)[at];
  switch (dtype) {
    case Dtype::Float16:
      return to_float(static_cast<const __half*>(p)[at]);
    case Dtype::BFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(p)[at]);
    default:
      return static_cast<const float*>(p)[at];
  }
}

__device__ __forceinline__ void store_as(void* p, Dtype, int64_t at, double v) {
  static_cast<double*>(p)[at] = v;
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

// COUNT values, a power of two, from p + at in the type of sums; up to 16 bytes at a time where `vector`,
// which asks for that alignment.
template <int COUNT, typename T>
__device__ __forceinline__ void load(SumsOf<T> (&out)[COUNT], const T* p, int64_t at, bool vector) {
  constexpr int EACH = COUNT < kVector<T> ? COUNT : kVector<T>;
  if (vector) {
#pragma unroll
    for (int i = 0; i < COUNT; i += EACH) {
      const auto packed = *reinterpret_cast<const Vector<T, EACH>*>(p + at + i);
#pragma unroll
      for (int j = 0; j < EACH; ++j) out[i + j] = widened(packed.v[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) out[i] = widened(p[at + i]);
  }
}

template <int COUNT, typename T>
__device__ __forceinline__ void store(T* p, int64_t at, const SumsOf<T> (&values)[COUNT], bool vector) {
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

// COUNT values of a tensor of T, or of fp32 where `wide`; as `load` and `store` have them. Decided at run
// time, because a kernel for each would take twice as long to compile and not run faster.
template <typename T, int COUNT>
__device__ __forceinline__ void load_output(SumsOf<T> (&out)[COUNT], const void* p, bool wide, int64_t at) {
  if constexpr (std::is_same_v<T, double>)
    load(out, static_cast<const T*>(p), at, true);
  else if (wide)
    load(out, static_cast<const float*>(p), at, true);
  else
    load(out, static_cast<const T*>(p), at, true);
}

template <typename T, int COUNT>
__device__ __forceinline__ void store_output(void* p, bool wide, int64_t at,
                                             const SumsOf<T> (&values)[COUNT]) {
  if constexpr (std::is_same_v<T, double>)
    store(static_cast<T*>(p), at, values, true);
  else if (wide)
    store(static_cast<float*>(p), at, values, true);
  else
    store(static_cast<T*>(p), at, values, true);
}

// The sum over `lanes` (a power of two) neighbouring lanes, in each of them.
template <typename A>
__device__ __forceinline__ A lane_sum(A v, int lanes = 32) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// The sum over the block, in every thread and alike in every run; uses a value of shared memory a warp, from
// `at`.
template <typename A>
__device__ __forceinline__ A block_sum(A v, uint32_t at) {
  constexpr uint32_t kValue = sizeof(A);
  v = lane_sum(v);
  if (threadIdx.x % 32 == 0) shared_store(at + threadIdx.x / 32 * kValue, v);
  barrier();
  A total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += shared_load<A>(at + warp * kValue);
  return total;
}

// f of the dtype as a type, on the host; one whose values are added up in A.
template <typename A = float, typename F>
cudaError_t by_dtype(Dtype dtype, F&& f) {
  if (!is_known<A>(dtype)) return cudaErrorInvalidValue;
  if constexpr (std::is_same_v<A, double>) {
    return f(Type<double>{});
  } else {
    if (dtype == Dtype::Float16) return f(Type<__half>{});
    return dtype == Dtype::BFloat16 ? f(Type<__nv_bfloat16>{}) : f(Type<float>{});
  }
}

// f of both; `out` is `dtype`, or fp32 beside a half type.
template <typename A = float, typename F>
cudaError_t by_dtypes(Dtype dtype, Dtype out, F&& f) {
  if (!is_output_of<A>(dtype, out)) return cudaErrorInvalidValue;
  return by_dtype<A>(dtype, [&](auto type) {
    if constexpr (sizeof(typename decltype(type)::type) == 2)
      if (out != dtype) return f(type, Type<float>{});
    return f(type, type);
  });
}

// f of the values that a thread takes of rows at a time, as a constant: 16 bytes, or one where rows are no
// multiple of that.
template <typename T, typename F>
cudaError_t by_vector(int channels, F&& f) {
  return channels % kVector<T> == 0 ? f(std::integral_constant<int, kVector<T>>{})
                                    : f(std::integral_constant<int, 1>{});
}

BCOS_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Lanes that share so many vectors, a power of two: at most one for each of them, and at most `most`.
inline int lanes_of(int64_t vectors, int most = 32) {
  int lanes = 1;
  while (lanes < most && lanes < vectors) lanes *= 2;
  return lanes;
}

// Compiles a launcher for both types of sums.
#define BCOS_FOR_BOTH_SUMS(launcher, Params)                         \
  template cudaError_t launcher(const Params<float>&, cudaStream_t); \
  template cudaError_t launcher(const Params<double>&, cudaStream_t)

}  // namespace bcos::cuda
