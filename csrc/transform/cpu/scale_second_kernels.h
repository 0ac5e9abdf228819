// The passes of scale_second.h for any element types. Each scale_second_*.cpp compiles them for its own
// types.
#pragma once

#include "transform/cpu/scale_kernels.h"
#include "transform/cpu/scale_second.h"

namespace bcos::transform::cpu {
namespace {

// What is known of a row's patches, and what is summed over them: a value for each element of the row
// (PerNorm) or one.
template <typename A>
struct Patches {
  const A *n, *rm;
  A *dn, *t;

  Patches at(int64_t i) const { return {shift(n, i), shift(rm, i), shift(dn, i), shift(t, i)}; }
};

// Adds the row's share to the sums in dn and t, which `finish` completes.
template <Power P, bool Max, bool Attached, typename R, typename T, typename U, typename A>
BCOS_INLINE void second_row(const ScaleSecond<T, U>& f, const R& row, const Patches<A>& patches,
                            const Constants<A>& k) {
  constexpr bool normed = P != Power::One, PerNorm = R::PerNorm;
  const int64_t max_out = Max ? f.max_out : 1, stride = Max ? row.z_stride : 1;
  const int64_t step = R::PerFilter ? max_out : 0, size = row.size, filter_stride = row.filter_stride;
  const U *grad = f.grad + row.y, *y = shift(f.y, row.y), *l = shift(f.l, row.y);
  const uint8_t* winner = shift(f.winner, row.y);
  const T* z = f.z + row.z;
  T* u = f.u + row.z;
  U *dgrad = f.dgrad + row.y, *dl = shift(f.dl, row.y);
  const A *alpha = f.alpha + row.filter, *n = patches.n, *rm = patches.rm;
  A *dn = patches.dn, *t = patches.t;
  const A inv_row = normed && !PerNorm ? safe_inverse(*n) : A(0), rm_row = Attached && !PerNorm ? *rm : A(0);
  A sum_dn = 0, sum_t = 0;
#pragma omp simd reduction(+ : sum_dn, sum_t)
  for (int64_t i = 0; i < size; i++) {
    const A inv_n = normed && PerNorm ? safe_inverse(n[i]) : inv_row;
    const A rm_i = Attached && PerNorm ? rm[i] : rm_row;
    const A l_i = P == Power::General ? A(l[i]) : A(0), y_i = P == Power::Two ? A(y[i]) : A(0);
    const int64_t which = Max ? winner[i] : 0;
    const A g = A(grad[i]), p = A(z[i * stride + which * filter_stride]) * alpha[i * step + which];
    const Partials<A> d = partials<P>(y_i, l_i, inv_n, k);
    if constexpr (Max) {
      for (int64_t o = 0; o < max_out; o++)
        u[i * stride + o * filter_stride] = o == which ? rounded<T>(g * d.l * alpha[i * step + o]) : T(0);
    } else {
      u[i] = rounded<T>(g * d.l * alpha[i * step]);
    }
    dgrad[i] = rounded<U>(d.l * p + d.n * rm_i);
    if constexpr (Attached) {
      const A cosine = signed_cosine<P>(y_i, l_i, inv_n);
      const A slope = g * curvature<P>(cosine, inv_n, k) * (p - cosine * rm_i);
      dl[i] = rounded<U>(slope);
      if constexpr (PerNorm) {
        dn[i] -= cosine * slope;
        t[i] += g * d.n;
      } else {
        sum_dn -= cosine * slope;
        sum_t += g * d.n;
      }
    }
  }
  if constexpr (Attached && !PerNorm) {
    *dn += sum_dn;
    *t += sum_t;
  }
}

// t = r sum of g Q, and what the slope of r adds to the gradient of n
template <typename A>
BCOS_INLINE void finish(const Patches<A>& patches, int64_t size, const Constants<A>& k) {
  for (int64_t i = 0; i < size; i++) {
    patches.t[i] *= root_gradient(patches.n[i], k);
    patches.dn[i] -= patches.rm[i] * patches.t[i];
  }
}

template <Power P, bool Max, bool Attached, typename T, typename U>
BCOS_INLINE void second_units(const ScaleSecond<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const auto k = f.k;
  const Tiling& t = f.tiling;
  const int64_t M = f.max_out, per_group = t.per_group, channels = t.channels();
  const bool narrow = is_narrow<P>(t);
  const Patches<A> all{f.n, f.rm, f.dn, f.t};
  std::vector<A> rows(narrow ? 4 * channels : 0);
  const auto start = [&](const Patches<A>& patches, int64_t size) {
    if (!Attached) return;
    std::fill_n(patches.dn, size, A(0));
    std::fill_n(patches.t, size, A(0));
  };
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last && (per_group == 1 || narrow)) {
      const auto patches = all.at(unit * t.groups);
      A* row = rows.data();
      const Patches<A> spread_out{row, row + channels, row + 2 * channels, row + 3 * channels};
      const Patches<A> used = narrow ? spread_out : patches;
      if (narrow) repeat(patches.n, t.groups, per_group, row);
      if (narrow && Attached) repeat(patches.rm, t.groups, per_group, row + channels);
      start(used, channels);
      second_row<P, Max, Attached>(f, pixel_row(t, M, unit), used, k);
      if (!Attached) continue;
      if (narrow) add_up(used.dn, t.groups, per_group, patches.dn);
      if (narrow) add_up(used.t, t.groups, per_group, patches.t);
      finish(patches, t.groups, k);
    } else if (t.channels_last) {
      const auto patches = all.at(unit * t.groups);
      start(patches, t.groups);
      for (int64_t g = 0; g < t.groups; g++)
        second_row<P, Max, Attached>(f, group_row(t, M, unit, g), patches.at(g), k);
      if (Attached) finish(patches, t.groups, k);
    } else {
      const Block b(t, unit);
      const auto patches = all.at(b.group * t.pixels + b.begin);
      A part_dn[Tiling::kBlock], part_t[Tiling::kBlock];
      const Patches<A> part{patches.n, patches.rm, part_dn, part_t};
      start(patches, b.size);
      for (int64_t first = 0; first < per_group; first += kSumChannels) {
        start(part, b.size);
        for (int64_t o = first; o < std::min(per_group, first + kSumChannels); o++)
          second_row<P, Max, Attached>(f, plane_row(t, M, b, o), part, k);
        if (Attached) add_row(patches.dn, part_dn, b.size);
        if (Attached) add_row(patches.t, part_t, b.size);
      }
      if (Attached) finish(patches, b.size, k);
    }
  }
}

template <bool Max, typename R, typename T, typename U>
BCOS_INLINE void join_row(const ScaleJoin<T, U>& f, const R& row) {
  using A = Accumulate<T>;
  const U* dl = f.dl + row.y;
  const uint8_t* winner = shift(f.winner, row.y);
  const int64_t step = R::PerFilter ? f.max_out : 0, stride = Max ? row.z_stride : 1;
  const int64_t size = row.size, filter_stride = row.filter_stride;
  const A* alpha = f.alpha + row.filter;
  T* u = f.u + (row.z - f.u_begin);
  A* dbias = shift(f.dbias, row.filter);
  const auto add = [&](int64_t i) BCOS_INLINE_BODY {
    const int64_t which = Max ? winner[i] : 0, at = i * stride + which * filter_stride;
    u[at] = rounded<T>(A(u[at]) + A(dl[i]) * alpha[i * step + which]);
  };
  if (dbias && R::PerFilter) {
    for (int64_t i = 0; i < size; i++) dbias[i * step + (Max ? winner[i] : 0)] += A(dl[i]);
  } else if (dbias) {
    add_to_winners<Max>(dbias, winner, f.max_out, dl, size);
  }
#pragma omp simd
  for (int64_t i = 0; i < size; i++) add(i);
}

template <bool Max, typename T, typename U>
BCOS_INLINE void join_units(const ScaleJoin<T, U>& f, int64_t begin, int64_t end) {
  const Tiling& t = f.tiling;
  const auto add_to_t = [&](int64_t first, int64_t size) BCOS_INLINE_BODY {
    for (int64_t i = first; i < first + size; i++) f.t[i] += f.dn[i] * root_gradient(f.n[i], f.k);
  };
  if (t.channels_last) add_to_t(begin * t.groups, (end - begin) * t.groups);
  for (int64_t unit = begin; unit < end; unit++) {
    if (t.channels_last) {
      join_row<Max>(f, pixel_row(t, f.max_out, unit));
      continue;
    }
    const Block b(t, unit);
    add_to_t(b.group * t.pixels + b.begin, b.size);
    for (int64_t o = 0; o < t.per_group; o++) join_row<Max>(f, plane_row(t, f.max_out, b, o));
  }
}

}  // namespace

template <typename T, typename U>
BCOS_CLONES void run(const ScaleSecond<T, U>& f, int64_t begin, int64_t end) {
  by_formula(f.power, f.max_out, [&](auto power, auto max) BCOS_INLINE_BODY {
    if constexpr (power() != Power::One)
      if (f.dl) return second_units<power(), max(), true>(f, begin, end);
    second_units<power(), max(), false>(f, begin, end);
  });
}

template <typename T, typename U>
BCOS_CLONES void run(const ScaleJoin<T, U>& f, int64_t begin, int64_t end) {
  f.max_out > 1 ? join_units<true>(f, begin, end) : join_units<false>(f, begin, end);
}

}  // namespace bcos::transform::cpu
