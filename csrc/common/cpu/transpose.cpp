#include "common/cpu/transpose.h"

#include <algorithm>
#include <cstring>

#include "common/cpu/registers.h"
#include "common/macros.h"

namespace bcos::cpu {
namespace {

constexpr int64_t kBlock = 8;

BCOS_INLINE void transpose_part(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out,
                                int64_t out_stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < columns; c++) out[c * out_stride + r] = in[r * in_stride + c];
}

#if defined(BCOS_VECTORS)
using Row = float __attribute__((vector_size(kBlock * sizeof(float))));

// Each round interleaves the rows i and i + 4 of the block. After three rounds it is transposed.
BCOS_INLINE void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  Row rows[kBlock], next[kBlock];
  for (int64_t i = 0; i < kBlock; i++) std::memcpy(&rows[i], in + i * in_stride, sizeof(Row));
#pragma GCC unroll 3
  for (int round = 0; round < 3; round++) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kBlock / 2; i++) {
      const Row a = rows[i], b = rows[i + kBlock / 2];
      next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kBlock; i++) rows[i] = next[i];
  }
  for (int64_t i = 0; i < kBlock; i++) std::memcpy(out + i * out_stride, &rows[i], sizeof(Row));
}
#else
BCOS_INLINE void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  transpose_part(in, in_stride, kBlock, kBlock, out, out_stride);
}
#endif

BCOS_CLONES void run(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out,
                     int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t height = std::min(kBlock, rows - r);
    for (int64_t c = 0; c < columns; c += kBlock) {
      const int64_t width = std::min(kBlock, columns - c);
      const float* from = in + r * in_stride + c;
      float* to = out + c * out_stride + r;
      if (height == kBlock && width == kBlock)
        transpose_block(from, in_stride, to, out_stride);
      else
        transpose_part(from, in_stride, height, width, to, out_stride);
    }
  }
}

}  // namespace

void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t columns, float* out,
               int64_t out_stride) {
  run(in, in_stride, rows, columns, out, out_stride);
}

}  // namespace bcos::cpu
