#include "transform/cpu/depthwise_rows.h"

#include <type_traits>
#include <utility>

namespace bcos::transform::cpu {
namespace {

#if defined(__GNUC__)
template <int Lanes>
using Part = Register<Lanes>;  // of the lanes of a pixel: what one register holds
#else
template <int Lanes>
using Part = Vec;
#endif

template <int Lanes>
constexpr int64_t kParts = kLanes / Lanes;

template <int Lanes>
BCOS_INLINE const Part<Lanes>* parts(const Vec* pixel) {
  return reinterpret_cast<const Part<Lanes>*>(pixel);
}
template <int Lanes>
BCOS_INLINE Part<Lanes>* parts(Vec* pixel) {
  return reinterpret_cast<Part<Lanes>*>(pixel);
}

// `between` follows for each pixel of [begin, end), spread over the sums: amid the rows of a sum where there
// are registers for both (AVX-512 has 32, its predecessors 16), else behind it.
template <int Lanes, int K, typename F>
BCOS_INLINE void correlate(const Product& p, int64_t begin, int64_t end, F&& between) {
  constexpr int64_t count = kParts<Lanes>;
  constexpr bool amid = Lanes == kLanes;
  const int64_t height = p.in.count, turns = std::max<int64_t>(1, amid ? height : count);
  const auto some = [&]() BCOS_INLINE_BODY {
    for (int64_t n = 0; n < at::ceil_div(kStep, turns) && begin < end; n++) between(begin++);
  };
  for (int64_t w = 0; w < p.width; w += kStep)
    for (int64_t part = 0; part < count; part++) {
      Part<Lanes> sum[kStep] = {};
      for (int64_t i = 0; i < height; i++) {
        const auto* in = parts<Lanes>(p.in.row(i) + w) + part;
        const auto* taps = parts<Lanes>(p.taps + i * K) + part;
        Part<Lanes> tap[K];
#pragma GCC unroll 16
        for (int j = 0; j < K; j++) tap[j] = taps[j * count];
#pragma GCC unroll 16
        for (int n = 0; n < kStep + K - 1; n++) {
          const Part<Lanes> v = in[n * count];
#pragma GCC unroll 16
          for (int j = 0; j < K; j++)
            if (n - j >= 0 && n - j < kStep) sum[n - j] += v * tap[j];
        }
        if constexpr (amid) some();
      }
#pragma GCC unroll 16
      for (int n = 0; n < kStep; n++) parts<Lanes>(p.out + w + n)[part] = sum[n];
      if constexpr (!amid) some();
    }
  while (begin < end) between(begin++);
}

// sum = the sum of all rows at w
template <int Lanes>
BCOS_INLINE void sum_rows(const Rows& rows, int64_t w, Vec& sum) {
#pragma GCC unroll 16
  for (int part = 0; part < kParts<Lanes>; part++) {
    Part<Lanes> total = {};
    for (int64_t i = 0; i < rows.count; i++) total += parts<Lanes>(rows.row(i) + w)[part];
    parts<Lanes>(&sum)[part] = total;
  }
}

BCOS_INLINE const float* lanes(const Vec* v) {
  return reinterpret_cast<const float*>(v);
}
BCOS_INLINE float* lanes(Vec* v) {
  return reinterpret_cast<float*>(v);
}

template <int Lanes, int K, Power P>
BCOS_INLINE void forward(const Product& product, const Forward& f, const Constants<float>& k) {
  const float* bias = lanes(f.bias);
  correlate<Lanes, K>(product, f.begin, f.end, [&](int64_t w) BCOS_INLINE_BODY {
    for (const Ahead& row : f.ahead) row.fetch(w - f.begin);
    Vec sum;
    if constexpr (P != Power::One) sum_rows<Lanes>(f.squares, w, sum);
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

template <int Lanes, int K, Power P, bool FormsT>
BCOS_INLINE void backward(const Product& product, const Backward& f, const Constants<float>& k) {
  float* lowest = lanes(f.lowest);
  correlate<Lanes, K>(product, f.begin, f.end, [&](int64_t w) BCOS_INLINE_BODY {
    for (const Ahead& row : f.ahead) row.fetch(w - f.begin);
    Vec sum;
    if constexpr (P != Power::One) sum_rows<Lanes>(f.squares, w, sum);
    const float *q = lanes(&sum), *y = P == Power::Two ? lanes(f.y + w) : nullptr,
                *l = P == Power::General ? lanes(f.l + w) : nullptr;
    float *grad = lanes(f.grad + w), *t = FormsT ? lanes(f.t + w) : nullptr;
#pragma omp simd
    for (int64_t c = 0; c < kLanes; c++) {
      const float norm = P == Power::One ? 0 : root_norm(q[c], k), g = grad[c];
      const auto d =
          partials<P>(P == Power::Two ? y[c] : 0, P == Power::General ? l[c] : 0, safe_inverse(norm), k);
      grad[c] = g * d.l;
      if constexpr (FormsT) t[c] = g * d.n * root_gradient(norm, k);
      if constexpr (P == Power::Two) lowest[c] = norm < lowest[c] ? norm : lowest[c];
    }
  });
}

template <int Lanes, int K, bool Squares>
BCOS_INLINE void box(const Vec* row, int64_t width, Vec* out) {
  constexpr int64_t count = kParts<Lanes>;
  const auto* in = parts<Lanes>(row);
  auto* to = parts<Lanes>(out);
  const auto add = [&](int64_t i, Part<Lanes>& sum)
                       BCOS_INLINE_BODY { sum += Squares ? in[i] * in[i] : in[i]; };
  // K windows that share their middle: one running sum leftwards from it, one rightwards, and one addition
  // each.
  for (int64_t w = 0; w < width; w += K)
    for (int64_t i = w * count; i < (w + 1) * count; i++) {
      Part<Lanes> left[K] = {}, right = {};
      add(i + (K - 1) * count, left[K - 1]);
#pragma GCC unroll 16
      for (int j = K - 2; j >= 0; j--) {
        left[j] = left[j + 1];
        add(i + j * count, left[j]);
      }
      to[i] = left[0];
#pragma GCC unroll 16
      for (int j = 1; j < K; j++) {
        add(i + (K - 1 + j) * count, right);
        to[i + j * count] = left[j] + right;
      }
    }
}

template <int Lanes, int K>
BCOS_INLINE void wgrad(const Vec* u, const Rows& rows, int64_t first, int64_t width, Vec* dtaps) {
  constexpr int64_t kTerms = 64;  // of one sum: its rounding error grows with their number
  constexpr int64_t count = kParts<Lanes>;
  for (int64_t begin = 0; begin < width; begin += kTerms)
    for (int64_t i = 0; i < rows.count; i++)
      for (int64_t part = 0; part < count; part++) {
        const auto* in = parts<Lanes>(rows.row(i) + first) + part;
        const auto* grad = parts<Lanes>(u) + part;
        auto* to = parts<Lanes>(dtaps + i * K) + part;
        Part<Lanes> sum[K] = {};
        for (int64_t w = begin; w < std::min(begin + kTerms, width); w++) {
          const Part<Lanes> g = grad[w * count];
#pragma GCC unroll 16
          for (int j = 0; j < K; j++) sum[j] += g * in[(w + j) * count];
        }
#pragma GCC unroll 16
        for (int j = 0; j < K; j++) to[j * count] += sum[j];
      }
}

#if defined(BCOS_VECTORS)
// Exchanges the lanes with S in their number of the upper row with those without it of the lower row.
template <int S, typename V, size_t... Lane>
BCOS_INLINE void exchange(V& upper, V& lower, std::index_sequence<Lane...>) {
  constexpr int count = sizeof...(Lane);
  const V first = __builtin_shufflevector(upper, lower, (Lane & S ? count + (Lane ^ S) : Lane)...);
  lower = __builtin_shufflevector(upper, lower, (Lane & S ? count + Lane : Lane ^ S)...);
  upper = first;
}

template <int Lanes, int S>
BCOS_INLINE void exchange(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++)
#pragma GCC unroll 16
    for (int part = 0; part < kParts<Lanes>; part++) {
      if (i & S || part & S / Lanes) continue;
      auto* upper = parts<Lanes>(rows + i) + part;
      auto* lower = parts<Lanes>(rows + i + S) + part;
      if constexpr (S < Lanes) {
        exchange<S>(*upper, *lower, std::make_index_sequence<Lanes>());
      } else {
        std::swap(upper[S / Lanes], *lower);
      }
    }
}

template <int Lanes>
BCOS_INLINE void transpose_block(Vec* block) {
  exchange<Lanes, 8>(block);
  exchange<Lanes, 4>(block);
  exchange<Lanes, 2>(block);
  exchange<Lanes, 1>(block);
}
#else
template <int Lanes>
BCOS_INLINE void transpose_block(Vec* block) {
  float* values = lanes(block);
  for (int64_t i = 0; i < kLanes; i++)
    for (int64_t j = 0; j < i; j++) std::swap(values[i * kLanes + j], values[j * kLanes + i]);
}
#endif

// body(Lanes, K) with the floats of a register and the kernel's columns as constants of the compiler
template <typename F>
BCOS_INLINE void by_columns(int64_t columns, F&& body) {
  by_lanes([&](auto lanes) BCOS_INLINE_BODY {
    switch (columns) {
      case 1:
        return body(lanes, std::integral_constant<int, 1>{});
      case 3:
        return body(lanes, std::integral_constant<int, 3>{});
      case 5:
        return body(lanes, std::integral_constant<int, 5>{});
      case 7:
        return body(lanes, std::integral_constant<int, 7>{});
    }
  });
}

}  // namespace

void transpose(Vec* block) {
  by_lanes([&](auto Lanes) BCOS_INLINE_BODY { transpose_block<Lanes()>(block); });
}
void forward_row(int64_t columns, Power power, const Product& product, const Forward& pixels,
                 const Constants<float>& k) {
  by_columns(columns, [&](auto Lanes, auto K) BCOS_INLINE_BODY {
    if (power == Power::One) return forward<Lanes(), K(), Power::One>(product, pixels, k);
    if (power == Power::Two) return forward<Lanes(), K(), Power::Two>(product, pixels, k);
    forward<Lanes(), K(), Power::General>(product, pixels, k);
  });
}
void backward_row(int64_t columns, Power power, const Product& product, const Backward& pixels,
                  const Constants<float>& k) {
  by_columns(columns, [&](auto Lanes, auto K) BCOS_INLINE_BODY {
    if (power == Power::One) return backward<Lanes(), K(), Power::One, false>(product, pixels, k);
    if (power == Power::Two)
      return pixels.t ? backward<Lanes(), K(), Power::Two, true>(product, pixels, k)
                      : backward<Lanes(), K(), Power::Two, false>(product, pixels, k);
    pixels.t ? backward<Lanes(), K(), Power::General, true>(product, pixels, k)
             : backward<Lanes(), K(), Power::General, false>(product, pixels, k);
  });
}
void box_row(int64_t columns, bool squares, const Vec* in, int64_t width, Vec* out) {
  by_columns(columns, [&](auto Lanes, auto K) BCOS_INLINE_BODY {
    squares ? box<Lanes(), K(), true>(in, width, out) : box<Lanes(), K(), false>(in, width, out);
  });
}
void add_products(const Rows& rows, const Vec* x, int64_t width, Vec* out) {
  by_lanes([&](auto Lanes) BCOS_INLINE_BODY {
    for (int64_t w = 0; w < width; w++) {
      Vec sum;
      sum_rows<Lanes()>(rows, w, sum);
      out[w] += x[w] * sum;
    }
  });
}
void wgrad_row(int64_t columns, const Vec* u, const Rows& rows, int64_t first, int64_t width, Vec* dtaps) {
  by_columns(columns,
             [&](auto Lanes, auto K) BCOS_INLINE_BODY { wgrad<Lanes(), K()>(u, rows, first, width, dtaps); });
}

}  // namespace bcos::transform::cpu
