#include "transform/cpu/depthwise_rows.h"

#include <type_traits>
#include <utility>

namespace bcos::transform::cpu {
namespace {

// `between` follows for each pixel of [begin, end), spread over the sums.
template <int K, typename F>
BCOS_INLINE void correlate(const Product& p, int64_t begin, int64_t end, F&& between) {
  const int64_t height = p.in.count, each = height ? (kStep + height - 1) / height : 0;
  for (int64_t w = 0; w < p.width; w += kStep) {
    Vec sum[kStep] = {};
    for (int64_t i = 0; i < height; i++) {
      const Vec* in = p.in.row(i) + w;
      Vec tap[K];
#pragma GCC unroll 16
      for (int j = 0; j < K; j++) tap[j] = p.taps[i * K + j];
#pragma GCC unroll 16
      for (int n = 0; n < kStep + K - 1; n++) {
        const Vec v = in[n];
#pragma GCC unroll 16
        for (int j = 0; j < K; j++)
          if (n - j >= 0 && n - j < kStep) sum[n - j] += v * tap[j];
      }
      for (int64_t n = 0; n < each && begin < end; n++) between(begin++);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kStep; n++) p.out[w + n] = sum[n];
  }
  while (begin < end) between(begin++);
}

// sum = the sum of all rows at w
BCOS_INLINE void sum_rows(const Rows& rows, int64_t w, Vec& sum) {
  sum = Vec{};
  for (int64_t i = 0; i < rows.count; i++) sum += rows.row(i)[w];
}

BCOS_INLINE const float* lanes(const Vec* v) {
  return reinterpret_cast<const float*>(v);
}
BCOS_INLINE float* lanes(Vec* v) {
  return reinterpret_cast<float*>(v);
}

template <int K, Power P>
BCOS_INLINE void forward(const Product& product, const Forward& f, const Constants<float>& k) {
  const float* bias = lanes(f.bias);
  correlate<K>(product, f.begin, f.end, [&](int64_t w) BCOS_INLINE_BODY {
    Vec sum;
    if constexpr (P != Power::One) sum_rows(f.squares, w, sum);
    const float* q = lanes(&sum);
    float *z = lanes(f.z + w), *l = P == Power::General ? lanes(f.l + w) : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < kLanes; c++) {
      const float linear = z[c] + bias[c];
      const float inverse = P == Power::One ? 0 : safe_inverse(root_norm(q[c], k));
      if constexpr (P == Power::General) l[c] = linear;
      z[c] = scaled<P>(linear, inverse, k);
    }
  });
}

template <int K, Power P, bool WithT>
BCOS_INLINE void backward(const Product& product, const Backward& f, const Constants<float>& k) {
  float* lowest = lanes(f.lowest);
  correlate<K>(product, f.begin, f.end, [&](int64_t w) BCOS_INLINE_BODY {
    Vec sum;
    if constexpr (P != Power::One) sum_rows(f.squares, w, sum);
    const float *q = lanes(&sum), *y = P == Power::Two ? lanes(f.y + w) : nullptr,
                *l = P == Power::General ? lanes(f.l + w) : nullptr;
    float *grad = lanes(f.grad + w), *t = WithT ? lanes(f.t + w) : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < kLanes; c++) {
      const float norm = P == Power::One ? 0 : root_norm(q[c], k), g = grad[c];
      const auto d =
          partials<P>(P == Power::Two ? y[c] : 0, P == Power::General ? l[c] : 0, safe_inverse(norm), k);
      grad[c] = g * d.l;
      if constexpr (WithT) t[c] = g * d.n * root_gradient(norm, k);
      if constexpr (P == Power::Two) lowest[c] = norm < lowest[c] ? norm : lowest[c];
    }
  });
}

template <int K, bool Squares>
BCOS_INLINE void box(const Vec* in, int64_t width, Vec* out) {
  const auto add = [&](int64_t w, Vec& sum) BCOS_INLINE_BODY { sum += Squares ? in[w] * in[w] : in[w]; };
  // K windows that share their middle: one running sum leftwards from it, one rightwards, and one addition
  // each.
  for (int64_t w = 0; w < width; w += K) {
    Vec left[K] = {}, right = {};
    add(w + K - 1, left[K - 1]);
#pragma GCC unroll 16
    for (int j = K - 2; j >= 0; j--) {
      left[j] = left[j + 1];
      add(w + j, left[j]);
    }
    out[w] = left[0];
#pragma GCC unroll 16
    for (int j = 1; j < K; j++) {
      add(w + K - 1 + j, right);
      out[w + j] = left[j] + right;
    }
  }
}

template <int K>
BCOS_INLINE void wgrad(const Vec* u, const Rows& rows, int64_t first, int64_t width, Vec* dtaps) {
  constexpr int64_t kTerms = 64;  // of one sum: its rounding error grows with their number
  for (int64_t begin = 0; begin < width; begin += kTerms)
    for (int64_t i = 0; i < rows.count; i++) {
      const Vec* in = rows.row(i) + first;
      Vec sum[K] = {};
      for (int64_t w = begin; w < std::min(begin + kTerms, width); w++) {
        const Vec g = u[w];
#pragma GCC unroll 16
        for (int j = 0; j < K; j++) sum[j] += g * in[w + j];
      }
#pragma GCC unroll 16
      for (int j = 0; j < K; j++) dtaps[i * K + j] += sum[j];
    }
}

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
// Exchanges the lanes with S in their number of the upper row with those without it of the lower row.
template <int S, size_t... Lane>
BCOS_INLINE void exchange(Vec& upper, Vec& lower, std::index_sequence<Lane...>) {
  const Vec first = __builtin_shufflevector(upper, lower, (Lane & S ? kLanes + (Lane ^ S) : Lane)...);
  lower = __builtin_shufflevector(upper, lower, (Lane & S ? kLanes + Lane : Lane ^ S)...);
  upper = first;
}

template <int S>
BCOS_INLINE void exchange(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
    if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_index_sequence<kLanes>());
}

BCOS_INLINE void transpose_block(Vec* block) {
  exchange<8>(block);
  exchange<4>(block);
  exchange<2>(block);
  exchange<1>(block);
}
#else
BCOS_INLINE void transpose_block(Vec* block) {
  float* values = lanes(block);
  for (int64_t i = 0; i < kLanes; i++)
    for (int64_t j = 0; j < i; j++) std::swap(values[i * kLanes + j], values[j * kLanes + i]);
}
#endif

// body(K) with the kernel's columns as a constant of the compiler
template <typename F>
BCOS_INLINE void by_columns(int64_t columns, F&& body) {
  switch (columns) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
  }
}

}  // namespace

BCOS_CLONES void transpose(Vec* block) {
  transpose_block(block);
}
BCOS_CLONES void forward_row(int64_t columns, Power power, const Product& product, const Forward& pixels,
                             const Constants<float>& k) {
  by_columns(columns, [&](auto K) BCOS_INLINE_BODY {
    if (power == Power::One) return forward<K(), Power::One>(product, pixels, k);
    if (power == Power::Two) return forward<K(), Power::Two>(product, pixels, k);
    forward<K(), Power::General>(product, pixels, k);
  });
}
BCOS_CLONES void backward_row(int64_t columns, Power power, const Product& product, const Backward& pixels,
                              const Constants<float>& k) {
  by_columns(columns, [&](auto K) BCOS_INLINE_BODY {
    if (power == Power::One) return backward<K(), Power::One, false>(product, pixels, k);
    if (power == Power::Two)
      return pixels.t ? backward<K(), Power::Two, true>(product, pixels, k)
                      : backward<K(), Power::Two, false>(product, pixels, k);
    pixels.t ? backward<K(), Power::General, true>(product, pixels, k)
             : backward<K(), Power::General, false>(product, pixels, k);
  });
}
BCOS_CLONES void box_row(int64_t columns, bool squares, const Vec* in, int64_t width, Vec* out) {
  by_columns(columns, [&](auto K) BCOS_INLINE_BODY {
    squares ? box<K(), true>(in, width, out) : box<K(), false>(in, width, out);
  });
}
BCOS_CLONES void add_products(const Rows& rows, const Vec* x, int64_t width, Vec* out) {
  for (int64_t w = 0; w < width; w++) {
    Vec sum;
    sum_rows(rows, w, sum);
    out[w] += x[w] * sum;
  }
}
BCOS_CLONES void wgrad_row(int64_t columns, const Vec* u, const Rows& rows, int64_t first, int64_t width,
                           Vec* dtaps) {
  by_columns(columns, [&](auto K) BCOS_INLINE_BODY { wgrad<K()>(u, rows, first, width, dtaps); });
}

}  // namespace bcos::transform::cpu
