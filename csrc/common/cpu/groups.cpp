#include "common/cpu/groups.h"

namespace bcos::cpu {

template <typename A>
BCOS_CLONES void add_up(const A* values, int64_t groups, int64_t width, A* out) {
  by_width(width, [&](auto constant) BCOS_INLINE_BODY {
    sum_groups(out, 0, groups, constant, [&](int64_t i) BCOS_INLINE_BODY { return values[i]; });
  });
}

template <typename A>
BCOS_CLONES void repeat(const A* values, int64_t groups, int64_t width, A* out) {
  by_width(width, [&](auto constant) BCOS_INLINE_BODY {
    const int64_t size = constant;
#pragma omp simd
    for (int64_t g = 0; g < groups; g++)
#pragma GCC unroll 32
      for (int64_t i = 0; i < size; i++) out[g * size + i] = values[g];
  });
}

template void add_up(const float*, int64_t, int64_t, float*);
template void add_up(const double*, int64_t, int64_t, double*);
template void repeat(const float*, int64_t, int64_t, float*);
template void repeat(const double*, int64_t, int64_t, double*);

}  // namespace bcos::cpu
