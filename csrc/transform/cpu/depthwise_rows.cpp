#include "transform/cpu/depthwise_rows.h"

#include <type_traits>

namespace bcos::transform::cpu {
namespace {

template <int K>
BCOS_INLINE void correlate(const Tile& tile, int64_t r, const Vec* taps, int64_t width, Vec* out) {
  for (int64_t w = 0; w < width; w += kStep) {
    Vec sum[kStep] = {};
    for (int i = 0; i < K; i++) {
      const Vec* in = tile.row(r + i) + w;
      Vec tap[K];
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) tap[j] = taps[i * K + j];
#pragma GCC unroll 16
      for (int p = 0; p < kStep + K - 1; p++) {
        const Vec v = in[p];
#pragma GCC unroll 7
        for (int j = 0; j < K; j++)
          if (p - j >= 0 && p - j < kStep) sum[p - j] += v * tap[j];
      }
    }
#pragma GCC unroll 7
    for (int p = 0; p < kStep; p++) out[w + p] = sum[p];
  }
}

template <int K, bool Square>
BCOS_INLINE void box(const Tile& tile, int64_t r, int64_t width, Vec* column, Vec* out) {
  for (int64_t w = 0; w < width + K - 1; w++) {
    Vec sum = {};
#pragma GCC unroll 7
    for (int i = 0; i < K; i++) {
      const Vec v = tile.row(r + i)[w];
      if constexpr (Square) {
        sum += v * v;
      } else {
        sum += v;
      }
    }
    column[w] = sum;
  }
  // K windows that share their middle: one running sum leftwards from it, one rightwards, and one addition
  // each.
  for (int64_t w = 0; w < width; w += K) {
    Vec left[K], right = {};
    left[K - 1] = column[w + K - 1];
#pragma GCC unroll 7
    for (int j = K - 2; j >= 0; j--) left[j] = left[j + 1] + column[w + j];
    out[w] = left[0];
#pragma GCC unroll 7
    for (int j = 1; j < K; j++) {
      right += column[w + K - 1 + j];
      out[w + j] = left[j] + right;
    }
  }
}

template <int K>
BCOS_INLINE void wgrad(const Tile& u, const Tile& x, int64_t rows, int64_t width, float* dtaps) {
  for (int i = 0; i < K; i++) {
    Vec sum[K] = {};
    for (int64_t r = 0; r < rows; r++) {
      const Vec *grad = u.row(r + K / 2) + K / 2, *in = x.row(r + K / 2 + i) + K / 2;
      Vec row[K] = {};  // summed by rows first: the rounding error grows with the terms of one sum
      for (int64_t w = 0; w < width; w++) {
        const Vec g = grad[w];
#pragma GCC unroll 7
        for (int j = 0; j < K; j++) row[j] += g * in[w + j];
      }
#pragma GCC unroll 7
      for (int j = 0; j < K; j++) sum[j] += row[j];
    }
    for (int j = 0; j < K; j++)
      for (int64_t c = 0; c < kLanes; c++) dtaps[(i * K + j) * kLanes + c] += sum[j][c];
  }
}

// body(K) with the kernel's size as a constant of the compiler
template <typename F>
BCOS_INLINE void by_kernel(int64_t kernel, F&& body) {
  switch (kernel) {
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
  }
}

}  // namespace

BCOS_CLONES void correlate_row(int64_t kernel, const Tile& tile, int64_t r, const Vec* taps, int64_t width,
                               Vec* out) {
  by_kernel(kernel, [&](auto K) BCOS_INLINE_BODY { correlate<K()>(tile, r, taps, width, out); });
}
BCOS_CLONES void box_row(int64_t kernel, const Tile& tile, int64_t r, int64_t width, Vec* column, Vec* out) {
  by_kernel(kernel, [&](auto K) BCOS_INLINE_BODY { box<K(), false>(tile, r, width, column, out); });
}
BCOS_CLONES void square_box_row(int64_t kernel, const Tile& tile, int64_t r, int64_t width, Vec* column,
                                Vec* out) {
  by_kernel(kernel, [&](auto K) BCOS_INLINE_BODY { box<K(), true>(tile, r, width, column, out); });
}
BCOS_CLONES void wgrad_band(int64_t kernel, const Tile& u, const Tile& x, int64_t rows, int64_t width,
                            float* dtaps) {
  by_kernel(kernel, [&](auto K) BCOS_INLINE_BODY { wgrad<K()>(u, x, rows, width, dtaps); });
}

}  // namespace bcos::transform::cpu
