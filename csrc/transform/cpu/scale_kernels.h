// The passes of scale.h for any element types. Each scale_*.cpp compiles them for its own types: compiled in
// one file they would decide how long the whole build takes.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/cpu/groups.h"
#include "common/cpu/sums.h"
#include "transform/cpu/scale.h"

namespace bcos::transform::cpu {
namespace {

// body(power, max) with both as constants of the compiler
template <typename F>
BCOS_INLINE void by_formula(Power power, int64_t max_out, F&& body) {
  const auto by_max_out = [&](auto constant) BCOS_INLINE_BODY {
    max_out > 1 ? body(constant, std::true_type{}) : body(constant, std::false_type{});
  };
  if (power == Power::One) return by_max_out(std::integral_constant<Power, Power::One>{});
  if (power == Power::Two) return by_max_out(std::integral_constant<Power, Power::Two>{});
  by_max_out(std::integral_constant<Power, Power::General>{});
}

// An integer of a number's size. v - v is +0, all of whose bits are 0, where v is finite, and else NaN.
template <typename A>
using BitsOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// A run of outputs with consecutive norms (PerNorm) or one norm, and consecutive filters (PerFilter) or those
// of one output.
template <bool PerNorm_, bool PerFilter_>
struct Row {
  static constexpr bool PerNorm = PerNorm_, PerFilter = PerFilter_;
  int64_t y, n, filter;             // the first output, its norm and its filter
  int64_t size;                     // how many outputs
  int64_t z;                        // the first product
  int64_t z_stride, filter_stride;  // how far the products of outputs lie apart, and those of filters
};

// The rows of a pass with max_out M: all channels of a channels_last pixel, each with a norm of its own ...
BCOS_INLINE Row<true, true> pixel_row(const Tiling& t, int64_t M, int64_t unit) {
  const int64_t y = unit * t.channels();
  return {y, y, 0, t.channels(), y * M, M, 1};
}

// ... those of one of its groups ...
BCOS_INLINE Row<false, true> group_row(const Tiling& t, int64_t M, int64_t unit, int64_t group) {
  const int64_t filter = group * t.per_group, y = unit * t.channels() + filter;
  return {y, unit * t.groups + group, filter * M, t.per_group, y * M, M, 1};
}

// ... and one channel of a block.
BCOS_INLINE Row<true, false> plane_row(const Tiling& t, int64_t M, const Block& b, int64_t channel) {
  const int64_t plane = b.group * t.per_group + channel;
  return {plane * t.pixels + b.begin,
          b.group * t.pixels + b.begin,
          (b.filter + channel) * M,
          b.size,
          plane * M * t.pixels + b.begin,
          1,
          t.pixels};
}

// body(row) for every row of units [begin, end)
template <typename F>
BCOS_INLINE void for_rows(const Tiling& t, int64_t M, int64_t begin, int64_t end, F&& body) {
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && t.per_group == 1) {
      body(pixel_row(t, M, unit));
    } else if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++) body(group_row(t, M, unit, g));
    } else {
      const Block b(t, unit);
      for (int64_t o = 0; o < t.per_group; o++) body(plane_row(t, M, b, o));
    }
  }
}

// `n`: the norms of the row R, or its one norm. Returns 0, or other bits where a product is not finite.
template <Power P, bool Max, typename R, typename T, typename U, typename A>
BCOS_INLINE BitsOf<A> forward_row(const ScaleForward<T, U>& f, const R& row, const A* n,
                                  const Constants<A>& k) {
  constexpr bool normed = P != Power::One, PerNorm = R::PerNorm;
  const int64_t max_out = Max ? f.max_out : 1, stride = Max ? row.z_stride : 1;
  const int64_t step = R::PerFilter ? max_out : 0, size = row.size, filter_stride = row.filter_stride;
  const T* z = f.z + (row.z - f.z_begin);
  const A *alpha = f.alpha + row.filter, *bias = f.bias + row.filter;
  const A inv_row = normed && !PerNorm ? safe_inverse(*n) : A(0);
  U *y = f.y + row.y, *l = shift(f.l, row.y);
  uint8_t* winner = shift(f.winner, row.y);
  BitsOf<A> check = 0;
  const BitsOf<A> marked = f.marks_lost ? -1 : 0;
#pragma omp simd reduction(| : check)
  for (int64_t i = 0; i < size; i++) {
    const A first = A(z[i * stride]);
    A best = first * alpha[i * step] + bias[i * step];
    BitsOf<A> lost = bits_of<BitsOf<A>>(first - first);
    if constexpr (Max) {
      uint8_t index = 0;
      for (int64_t m = 1; m < max_out; m++) {
        const A other = A(z[i * stride + m * filter_stride]);
        const A v = other * alpha[i * step + m] + bias[i * step + m];
        lost |= bits_of<BitsOf<A>>(other - other);
        const bool take = replaces(v, best);
        best = take ? v : best;
        index = take ? uint8_t(m) : index;
      }
      winner[i] = index;
      best = lost & marked ? std::numeric_limits<A>::quiet_NaN() : best;
    }
    check |= lost;
    if constexpr (P == Power::General) l[i] = rounded<U>(best);
    const A inv_n = normed && PerNorm ? safe_inverse(n[i]) : inv_row;
    y[i] = rounded<U>(scaled<P>(best, inv_n, k));
  }
  return check;
}

// Pixels whose rows are scaled together: what is done once for a row costs about as much as the row itself.
constexpr int64_t kPixels = 4;

// forward_row of one group of kPixels channels_last pixels from `unit` on, without max_out.
template <Power P, typename T, typename U, typename A>
BCOS_INLINE BitsOf<A> forward_rows(const ScaleForward<T, U>& f, int64_t unit, int64_t group,
                                   const Constants<A>& k) {
  const Tiling& t = f.tiling;
  const int64_t stride = t.channels(), filter = group * t.per_group, from = unit * stride + filter;
  const T* z = f.z + (from - f.z_begin);
  const A *alpha = f.alpha + filter, *bias = f.bias + filter;
  U *y = f.y + from, *l = shift(f.l, from);
  A inv_n[kPixels] = {};
  for (int64_t p = 0; p < kPixels; p++)
    if (P != Power::One) inv_n[p] = safe_inverse(f.n[(unit + p) * t.groups + group]);
  BitsOf<A> check = 0;
#pragma omp simd reduction(| : check)
  for (int64_t i = 0; i < t.per_group; i++) {
    const A scale = alpha[i], shift = bias[i];
#pragma GCC unroll 4
    for (int64_t p = 0; p < kPixels; p++) {
      const A first = A(z[p * stride + i]), linear = first * scale + shift;
      check |= bits_of<BitsOf<A>>(first - first);
      if constexpr (P == Power::General) l[p * stride + i] = rounded<U>(linear);
      y[p * stride + i] = rounded<U>(scaled<P>(linear, inv_n[p], k));
    }
  }
  return check;
}

// Whether a pixel's groups are so narrow that one row of all its channels, each with its norm, is faster than
// a row for each group.
template <Power P>
BCOS_INLINE bool is_narrow(const Tiling& t) {
  constexpr int64_t kNarrow = 16;
  return P != Power::One && t.channels_last && t.groups > 1 && t.per_group > 1 && t.per_group < kNarrow;
}

template <Power P, bool Max, typename T, typename U>
BCOS_INLINE bool forward_units(const ScaleForward<T, U>& f, int64_t begin, int64_t end) {
  const auto k = f.k;
  const Tiling& t = f.tiling;
  const bool narrow = is_narrow<P>(t);
  std::vector<Accumulate<T>> norms(narrow ? t.channels() : 0);
  BitsOf<Accumulate<T>> check = 0;
  if (!Max && t.channels_last && t.per_group > 1 && !narrow)
    for (; begin + kPixels <= end; begin += kPixels)
      for (int64_t g = 0; g < t.groups; g++) check |= forward_rows<P>(f, begin, g, k);
  if (narrow) {
    for (; begin < end; begin++) {
      repeat(f.n + begin * t.groups, t.groups, t.per_group, norms.data());
      check |= forward_row<P, Max>(f, pixel_row(t, f.max_out, begin), norms.data(), k);
    }
  }
  for_rows(t, f.max_out, begin, end, [&](const auto& row) BCOS_INLINE_BODY {
    check |= forward_row<P, Max>(f, row, shift(f.n, row.n), k);
  });
  return check == 0;
}

// dbias[m] += those values of a row of one output of which filter m is the largest; of all without Max
template <bool Max, typename V, typename A>
BCOS_INLINE void add_to_winners(A* dbias, const uint8_t* winner, int64_t max_out, const V* values,
                                int64_t size) {
  for (int64_t m = 0; m < max_out; m++) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += !Max || winner[i] == m ? A(values[i]) : A(0);
    dbias[m] += sum;
  }
}

// What a backward does beside forming u and t.
enum class Beside {
  Nothing,
  Bias,  // adds up dbias
  Map,   // forms the gradient of y from its map first
};

// Returns the row's sum of grad * dy/dn, or adds each element's to t (PerNorm).
template <Power P, bool Max, Beside B, typename R, typename T, typename U, typename A>
BCOS_INLINE A backward_row(const ScaleBackward<T, U>& f, const R& row, const A* n, A* t,
                           const Constants<A>& k) {
  constexpr bool normed = P != Power::One, Bias = B == Beside::Bias;
  constexpr bool PerNorm = R::PerNorm, PerFilter = R::PerFilter;
  const int64_t max_out = Max ? f.max_out : 1, stride = Max ? row.z_stride : 1;
  const int64_t step = PerFilter ? max_out : 0, size = row.size, filter_stride = row.filter_stride;
  const int64_t outputs = f.tiling.groups * f.tiling.per_group;
  const A *of_grad = shift(f.map, row.filter), *of_y = shift(of_grad, outputs), *mean = shift(of_y, outputs),
          *offset = shift(mean, outputs);
  const U *grad = f.grad + row.y, *y = shift(f.y, row.y), *l = shift(f.l, row.y);
  const uint8_t* winner = shift(f.winner, row.y);
  const A* alpha = f.alpha + row.filter;
  const A inv_row = normed && !PerNorm ? safe_inverse(*n) : A(0);
  T* u = f.u + (row.z - f.u_begin);
  A* dbias = shift(f.dbias, row.filter);
  constexpr bool sums_bias = Bias && !PerFilter;
  A of_row[sums_bias ? Tiling::kBlock : 1];
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) {
    const A inv_n = normed && PerNorm ? safe_inverse(n[i]) : inv_row;
    const A l_i = P == Power::General ? A(l[i]) : A(0), y_i = P == Power::Two ? A(y[i]) : A(0);
    const Partials<A> d = partials<P>(y_i, l_i, inv_n, k);
    A g = A(grad[i]);
    if constexpr (B == Beside::Map)
      g = g * of_grad[i * step] + (y_i - mean[i * step]) * of_y[i * step] + offset[i * step];
    const A du = g * d.l;
    if constexpr (normed && PerNorm) {
      t[i] += g * d.n;
    } else if constexpr (normed) {
      sum += g * d.n;
    }
    if constexpr (Max) {
      for (int64_t m = 0; m < max_out; m++) {
        const A v = winner[i] == m ? du : A(0);
        u[i * stride + m * filter_stride] = rounded<T>(v * alpha[i * step + m]);
        if constexpr (Bias && PerFilter) dbias[i * step + m] += v;
      }
    } else {
      u[i * stride] = rounded<T>(du * alpha[i * step]);
      if constexpr (Bias && PerFilter) dbias[i] += du;
    }
    if constexpr (sums_bias) of_row[i] = du;
  }
  if constexpr (sums_bias) add_to_winners<Max>(dbias, winner, max_out, of_row, size);
  return sum;
}

template <Power P, bool Max, Beside B, typename T, typename U>
BCOS_INLINE void backward_units(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  const auto k = f.k;
  const Tiling& t = f.tiling;
  const int64_t M = f.max_out, channels = t.channels();
  constexpr bool with_t = P != Power::One;
  using A = Accumulate<T>;
  const bool narrow = is_narrow<P>(t);
  std::vector<A> rows(narrow ? 2 * channels : 0);
  const auto finish = [&](int64_t first, int64_t size) {
    for (int64_t i = first; i < first + size; i++) f.t[i] *= root_gradient(f.n[i], k);
  };
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && t.per_group == 1) {
      const auto row = pixel_row(t, M, unit);
      if (with_t) std::fill_n(f.t + row.n, channels, 0);
      backward_row<P, Max, B>(f, row, shift(f.n, row.n), shift(f.t, row.n), k);
      if (with_t) finish(row.n, channels);
    } else if (t.channels_last && narrow) {
      const int64_t n0 = unit * t.groups;
      A *norms = rows.data(), *terms = norms + channels;
      repeat(f.n + n0, t.groups, t.per_group, norms);
      std::fill_n(terms, channels, A(0));
      backward_row<P, Max, B>(f, pixel_row(t, M, unit), norms, terms, k);
      add_up(terms, t.groups, t.per_group, f.t + n0);
      finish(n0, t.groups);
    } else if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++) {
        const auto row = group_row(t, M, unit, g);
        const A sum = backward_row<P, Max, B>(f, row, shift(f.n, row.n), static_cast<A*>(nullptr), k);
        if (with_t) f.t[row.n] = sum * root_gradient(f.n[row.n], k);
      }
    } else {
      const Block b(t, unit);
      const int64_t n0 = b.group * t.pixels + b.begin;
      A part[Tiling::kBlock];
      for (int64_t o = 0; o < t.per_group; o++) {
        const bool starts = with_t && o % kSumChannels == 0,
                   ends = o + 1 == t.per_group || (o + 1) % kSumChannels == 0;
        A* sums = o < kSumChannels ? shift(f.t, n0) : part;
        if (starts) std::fill_n(sums, b.size, 0);
        backward_row<P, Max, B>(f, plane_row(t, M, b, o), shift(f.n, n0), sums, k);
        if (with_t && ends && sums == part) add_row(f.t + n0, part, b.size);
      }
      if (with_t) finish(n0, b.size);
    }
  }
}

}  // namespace

template <typename T, typename U>
BCOS_CLONES bool run(const ScaleForward<T, U>& f, int64_t begin, int64_t end) {
  bool finite = true;
  by_formula(f.power, f.max_out, [&](auto power, auto max) BCOS_INLINE_BODY {
    finite = forward_units<power(), max()>(f, begin, end);
  });
  return finite;
}

template <typename T, typename U>
BCOS_CLONES void run(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  by_formula(f.power, f.max_out, [&](auto power, auto max) BCOS_INLINE_BODY {
    if constexpr (power() == Power::Two && !max())
      if (f.map) return backward_units<power(), max(), Beside::Map>(f, begin, end);
    f.dbias ? backward_units<power(), max(), Beside::Bias>(f, begin, end)
            : backward_units<power(), max(), Beside::Nothing>(f, begin, end);
  });
}

template <typename T, typename U>
BCOS_CLONES double b_gradient(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  double sum = 0;
  for_rows(f.tiling, 1, begin, end, [&](const auto& row) BCOS_INLINE_BODY {
    for (int64_t i = 0; i < row.size; i++)
      sum += double(f.grad[row.y + i]) *
             partial_b(Accumulate<T>(f.l[row.y + i]), safe_inverse(f.n[row.n + (row.PerNorm ? i : 0)]), f.k);
  });
  return sum;
}

template <typename T>
BCOS_CLONES void run(const AddScaled<T>& f, int64_t begin, int64_t end) {
  for_rows(f.tiling, 1, begin, end, [&](const auto& row) BCOS_INLINE_BODY {
    const T* x = f.x + row.y;
    const auto* r = f.r + row.n;
    const auto r_row = *r;
    T* dx = f.dx + row.y;
#pragma omp simd
    for (int64_t i = 0; i < row.size; i++)
      dx[i] = rounded<T>(Accumulate<T>(dx[i]) + Accumulate<T>(x[i]) * (row.PerNorm ? r[i] : r_row));
  });
}

}  // namespace bcos::transform::cpu
