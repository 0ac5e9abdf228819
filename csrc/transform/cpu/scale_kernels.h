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

// body(power, max) with both as constants of the compiler; power is one of Powers
template <Power... Powers, typename F>
BCOS_INLINE void by_formula(Power power, int64_t max_out, F&& body) {
  const auto by_max_out = [&](auto constant) BCOS_INLINE_BODY {
    max_out > 1 ? body(constant, std::true_type{}) : body(constant, std::false_type{});
    return true;
  };
  (void)((power == Powers && by_max_out(std::integral_constant<Power, Powers>{})) || ...);
}

// An integer of a number's size. v - v is +0, all of whose bits are 0, where v is finite, and else NaN.
template <typename A>
using BitsOf = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

// A row is a run of elements with consecutive norms (PerNorm) or one norm, and consecutive filters
// (PerFilter) or one.
// Returns 0, or other bits where a product is not finite.
template <Power P, bool Max, bool PerNorm, bool PerFilter, typename T, typename U, typename A>
BCOS_INLINE BitsOf<A> forward_row(const ScaleForward<T, U>& f, int64_t z0, int64_t z_stride,
                                  int64_t filter_stride, int64_t y0, const Accumulate<T>* n, int64_t filter,
                                  int64_t size, const Constants<A>& k) {
  constexpr bool normed = P != Power::One;
  const int64_t max_out = Max ? f.max_out : 1;
  const int64_t stride = Max ? z_stride : 1;
  const int64_t step = PerFilter ? max_out : 0;
  const T* z = f.z + (z0 - f.z_begin);
  const A *alpha = f.alpha + filter, *bias = f.bias + filter;
  const A inv_row = normed && !PerNorm ? safe_inverse(*n) : A(0);
  U *y = f.y + y0, *l = shift(f.l, y0);
  uint8_t* winner = shift(f.winner, y0);
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
  const int64_t M = f.max_out, per_group = t.per_group, channels = t.channels();
  const bool narrow = is_narrow<P>(t);
  std::vector<Accumulate<T>> norms(narrow ? channels : 0);
  BitsOf<Accumulate<T>> check = 0;
  if (!Max && t.channels_last && per_group > 1 && !narrow)
    for (; begin + kPixels <= end; begin += kPixels)
      for (int64_t g = 0; g < t.groups; g++) check |= forward_rows<P>(f, begin, g, k);
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && per_group == 1) {
      const int64_t y0 = unit * channels;
      check |= forward_row<P, Max, true, true>(f, y0 * M, M, 1, y0, shift(f.n, y0), 0, channels, k);
    } else if (t.channels_last && narrow) {
      const int64_t y0 = unit * channels;
      repeat(f.n + unit * t.groups, t.groups, per_group, norms.data());
      check |= forward_row<P, Max, true, true>(f, y0 * M, M, 1, y0, norms.data(), 0, channels, k);
    } else if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++) {
        const int64_t y0 = unit * channels + g * per_group;
        check |= forward_row<P, Max, false, true>(f, y0 * M, M, 1, y0, shift(f.n, unit * t.groups + g),
                                                  g * per_group * M, per_group, k);
      }
    } else {
      const Block b(t, unit);
      for (int64_t o = 0; o < per_group; o++) {
        const int64_t plane = b.group * per_group + o;
        check |= forward_row<P, Max, true, false>(
            f, plane * M * t.pixels + b.begin, 1, t.pixels, plane * t.pixels + b.begin,
            shift(f.n, b.group * t.pixels + b.begin), (b.filter + o) * M, b.size, k);
      }
    }
  }
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
enum class Beside { Nothing, Bias, Map };  // adds up dbias, or forms the gradient of y first

// Returns the row's sum of grad * dy/dn, or adds each element's to t (PerNorm).
template <Power P, bool Max, bool PerNorm, bool PerFilter, Beside B, typename T, typename U, typename A>
BCOS_INLINE A backward_row(const ScaleBackward<T, U>& f, int64_t u0, int64_t u_stride, int64_t filter_stride,
                           int64_t y0, const Accumulate<T>* n, Accumulate<T>* t, int64_t filter, int64_t size,
                           const Constants<A>& k) {
  constexpr bool normed = P != Power::One, Bias = B == Beside::Bias;
  const int64_t max_out = Max ? f.max_out : 1;
  const int64_t stride = Max ? u_stride : 1;
  const int64_t step = PerFilter ? max_out : 0;
  const int64_t outputs = f.tiling.groups * f.tiling.per_group;
  const A *of_grad = shift(f.map, filter), *of_y = shift(of_grad, outputs), *mean = shift(of_y, outputs),
          *offset = shift(mean, outputs);
  const U *grad = f.grad + y0, *y = shift(f.y, y0), *l = shift(f.l, y0);
  const uint8_t* winner = shift(f.winner, y0);
  const A* alpha = f.alpha + filter;
  const A inv_row = normed && !PerNorm ? safe_inverse(*n) : A(0);
  T* u = f.u + (u0 - f.u_begin);
  A* dbias = shift(f.dbias, filter);
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
  const int64_t M = f.max_out, per_group = t.per_group, channels = t.channels();
  constexpr bool with_t = P != Power::One;
  using A = Accumulate<T>;
  const bool narrow = is_narrow<P>(t);
  std::vector<A> rows(narrow ? 2 * channels : 0);
  const auto finish = [&](int64_t first, int64_t size) {
    for (int64_t i = first; i < first + size; i++) f.t[i] *= root_gradient(f.n[i], k);
  };
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && per_group == 1) {
      const int64_t y0 = unit * channels;
      if (with_t) std::fill_n(f.t + y0, channels, 0);
      backward_row<P, Max, true, true, B>(f, y0 * M, M, 1, y0, shift(f.n, y0), shift(f.t, y0), 0, channels,
                                          k);
      if (with_t) finish(y0, channels);
    } else if (t.channels_last && narrow) {
      const int64_t y0 = unit * channels, n0 = unit * t.groups;
      A *norms = rows.data(), *terms = norms + channels;
      repeat(f.n + n0, t.groups, per_group, norms);
      std::fill_n(terms, channels, A(0));
      backward_row<P, Max, true, true, B>(f, y0 * M, M, 1, y0, norms, terms, 0, channels, k);
      add_up(terms, t.groups, per_group, f.t + n0);
      finish(n0, t.groups);
    } else if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++) {
        const int64_t y0 = unit * channels + g * per_group, n0 = unit * t.groups + g;
        const auto sum = backward_row<P, Max, false, true, B>(f, y0 * M, M, 1, y0, shift(f.n, n0), nullptr,
                                                              g * per_group * M, per_group, k);
        if (with_t) f.t[n0] = sum * root_gradient(f.n[n0], k);
      }
    } else {
      const Block b(t, unit);
      const int64_t n0 = b.group * t.pixels + b.begin;
      A part[Tiling::kBlock];
      for (int64_t o = 0; o < per_group; o++) {
        const int64_t plane = b.group * per_group + o;
        const bool starts = with_t && o % kSumChannels == 0,
                   ends = o + 1 == per_group || (o + 1) % kSumChannels == 0;
        A* sums = o < kSumChannels ? shift(f.t, n0) : part;
        if (starts) std::fill_n(sums, b.size, 0);
        backward_row<P, Max, true, false, B>(f, plane * M * t.pixels + b.begin, 1, t.pixels,
                                             plane * t.pixels + b.begin, shift(f.n, n0), sums,
                                             (b.filter + o) * M, b.size, k);
        if (with_t && ends && sums == part) add_row(f.t + n0, part, b.size);
      }
      if (with_t) finish(n0, b.size);
    }
  }
}

template <Power... Powers, typename T, typename U>
BCOS_INLINE void backward_of(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  by_formula<Powers...>(f.power, f.max_out, [&](auto power, auto max) BCOS_INLINE_BODY {
    if constexpr (power() == Power::Two && !max())
      if (f.map) return backward_units<power(), max(), Beside::Map>(f, begin, end);
    f.dbias ? backward_units<power(), max(), Beside::Bias>(f, begin, end)
            : backward_units<power(), max(), Beside::Nothing>(f, begin, end);
  });
}

}  // namespace

template <typename T, typename U>
BCOS_CLONES bool run(const ScaleForward<T, U>& f, int64_t begin, int64_t end) {
  bool finite = true;
  by_formula<Power::One, Power::Two, Power::General>(
      f.power, f.max_out,
      [&](auto power, auto max) BCOS_INLINE_BODY { finite = forward_units<power(), max()>(f, begin, end); });
  return finite;
}

template <typename T, typename U>
BCOS_CLONES void run(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  backward_of<Power::One, Power::Two, Power::General>(f, begin, end);
}

template <typename T, typename U>
BCOS_CLONES double b_gradient(const ScaleBackward<T, U>& f, int64_t begin, int64_t end) {
  const Tiling& t = f.tiling;
  double sum = 0;
  for (int64_t unit = begin; unit < end; unit++) {
    const auto add = [&](int64_t y0, int64_t n0, int64_t n_step, int64_t size) {
      for (int64_t i = 0; i < size; i++)
        sum += double(f.grad[y0 + i]) *
               partial_b(Accumulate<T>(f.l[y0 + i]), safe_inverse(f.n[n0 + i * n_step]), f.k);
    };
    if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++)
        add(unit * t.channels() + g * t.per_group, unit * t.groups + g, 0, t.per_group);
    } else {
      const Block b(t, unit);
      for (int64_t o = 0; o < t.per_group; o++)
        add((b.group * t.per_group + o) * t.pixels + b.begin, b.group * t.pixels + b.begin, 1, b.size);
    }
  }
  return sum;
}

template <typename T>
BCOS_CLONES void run(const AddScaled<T>& f, int64_t begin, int64_t end) {
  const Tiling& t = f.tiling;
  const auto add = [&](int64_t x0, int64_t r0, auto per_pixel, int64_t size) {
    const T* x = f.x + x0;
    const auto* r = f.r + r0;
    const auto r_row = *r;
    T* dx = f.dx + x0;
#pragma omp simd
    for (int64_t i = 0; i < size; i++)
      dx[i] = rounded<T>(Accumulate<T>(dx[i]) + Accumulate<T>(x[i]) * (per_pixel ? r[i] : r_row));
  };
  constexpr std::true_type each;
  constexpr std::false_type row;
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && t.per_group == 1) {
      add(unit * t.groups, unit * t.groups, each, t.groups);
    } else if (t.channels_last) {
      for (int64_t g = 0; g < t.groups; g++)
        add(unit * t.channels() + g * t.per_group, unit * t.groups + g, row, t.per_group);
    } else {
      const Block b(t, unit);
      for (int64_t c = 0; c < t.per_group; c++)
        add((b.group * t.per_group + c) * t.pixels + b.begin, b.group * t.pixels + b.begin, each, b.size);
    }
  }
}

}  // namespace bcos::transform::cpu
