#include "common/cpu/groups.h"

namespace bcos::cpu {
namespace {

template <typename A>
BCOS_INLINE void add_up_all(const A* values, int64_t groups, int64_t width, A* out) {
  by_width(width, [&](auto constant) BCOS_INLINE_BODY {
    sum_groups(out, 0, groups, constant, [&](int64_t i) BCOS_INLINE_BODY { return values[i]; });
  });
}

template <typename A>
BCOS_INLINE void repeat_all(const A* values, int64_t groups, int64_t width, A* out) {
  by_width(width, [&](auto constant) BCOS_INLINE_BODY {
    const int64_t size = constant;
#pragma omp simd
    for (int64_t g = 0; g < groups; g++)
#pragma GCC unroll 32
      for (int64_t i = 0; i < size; i++) out[g * size + i] = values[g];
  });
}

BCOS_CLONES void run_add_up(const float* values, int64_t groups, int64_t width, float* out) {
  add_up_all(values, groups, width, out);
}
BCOS_CLONES void run_add_up(const double* values, int64_t groups, int64_t width, double* out) {
  add_up_all(values, groups, width, out);
}
BCOS_CLONES void run_repeat(const float* values, int64_t groups, int64_t width, float* out) {
  repeat_all(values, groups, width, out);
}
BCOS_CLONES void run_repeat(const double* values, int64_t groups, int64_t width, double* out) {
  repeat_all(values, groups, width, out);
}

}  // namespace

void add_up(const float* values, int64_t groups, int64_t width, float* out) {
  run_add_up(values, groups, width, out);
}
void add_up(const double* values, int64_t groups, int64_t width, double* out) {
  run_add_up(values, groups, width, out);
}
void repeat(const float* values, int64_t groups, int64_t width, float* out) {
  run_repeat(values, groups, width, out);
}
void repeat(const double* values, int64_t groups, int64_t width, double* out) {
  run_repeat(values, groups, width, out);
}

}  // namespace bcos::cpu
