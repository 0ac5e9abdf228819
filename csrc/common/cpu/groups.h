// Loops over the groups of channels of a channels_last pixel.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/macros.h"

namespace bcos::cpu {

// body(width) with a width that groups often have as a constant of the compiler, which then works on several
// groups at once; every other width is passed as it is.
template <typename F>
BCOS_INLINE void by_width(int64_t width, F&& body) {
  switch (width) {
    case 4:
      return body(std::integral_constant<int64_t, 4>{});
    case 6:
      return body(std::integral_constant<int64_t, 6>{});
    case 8:
      return body(std::integral_constant<int64_t, 8>{});
    case 16:
      return body(std::integral_constant<int64_t, 16>{});
    case 32:
      return body(std::integral_constant<int64_t, 32>{});
    default:
      return body(width);
  }
}

// out[g] = the sum of value(i) over the `width` elements i of group g
template <typename A, typename Width, typename F>
BCOS_INLINE void sum_groups(A* out, int64_t begin, int64_t end, Width width, F&& value) {
  const int64_t size = width;
#pragma omp simd
  for (int64_t g = begin; g < end; g++) {
    A sum = 0;
#pragma GCC unroll 32
    for (int64_t i = 0; i < size; i++) sum += value(g * size + i);
    out[g] = sum;
  }
}

// out[g] = the sum of the values of group g, of which each of `groups` has `width`; and its transpose, which
// repeats one value of each group. They are compiled apart, so that the loops around them are small.
template <typename A>
void add_up(const A* values, int64_t groups, int64_t width, A* out);
template <typename A>
void repeat(const A* values, int64_t groups, int64_t width, A* out);

}  // namespace bcos::cpu
