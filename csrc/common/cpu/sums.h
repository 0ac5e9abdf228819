// Sums in several parts: the rounding error of a sum grows with the terms that one accumulator takes.
#pragma once

#include <cstdint>

#include "common/cpu/types.h"

namespace bcos::cpu {

template <typename T>
BCOS_INLINE Accumulate<T> short_dot(const T* a, const T* b, int64_t size) {
  Accumulate<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += Accumulate<T>(a[i]) * Accumulate<T>(b[i]);
  return sum;
}

// <a, b>
template <typename T>
BCOS_INLINE Accumulate<T> dot(const T* a, const T* b, int64_t size) {
  using A = Accumulate<T>;
  constexpr int64_t kShort = 256;  // below it four sums cost more than they gain
  if (size < kShort) return short_dot(a, b, size);
  const int64_t quarter = size / 4;
  A sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
  for (int64_t i = 0; i < quarter; i++) {
    const int64_t i1 = i + quarter, i2 = i1 + quarter, i3 = i2 + quarter;
    sum0 += A(a[i]) * A(b[i]);
    sum1 += A(a[i1]) * A(b[i1]);
    sum2 += A(a[i2]) * A(b[i2]);
    sum3 += A(a[i3]) * A(b[i3]);
  }
  for (int64_t i = 4 * quarter; i < size; i++) sum0 += A(a[i]) * A(b[i]);
  return (sum0 + sum1) + (sum2 + sum3);
}

template <typename S, typename A>
BCOS_INLINE void add_row(S* out, const A* in, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; i++) out[i] += in[i];
}

// Channels whose values are added up before the sum joins that of the channels before them.
constexpr int64_t kSumChannels = 128;

}  // namespace bcos::cpu
