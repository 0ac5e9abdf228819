// The passes of depthwise_pass.h for any element types. Each depthwise_*.cpp compiles them for its own types:
// compiled in one file they would decide how long the whole build takes.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "transform/cpu/depthwise_rows.h"

namespace bcos::transform::cpu {
namespace {

// One unit of work: a band of rows of one image in one block of channels.
struct Unit {
  int64_t image, channel, lanes, first, rows, block;
  Unit(const DepthwiseShape& s, int64_t unit) {
    block = unit / (s.batch * s.bands());
    image = unit / s.bands() % s.batch;
    channel = block * kLanes;
    lanes = std::min(kLanes, s.channels - channel);
    first = unit % s.bands() * s.band;
    rows = std::min(s.band, s.height - first);
  }
  int64_t at(const DepthwiseShape& s, int64_t h, int64_t w) const {
    return ((image * s.height + h) * s.width + w) * s.channels + channel;
  }
};

// body(lane) for the valid lanes, with a constant count where all are
template <typename F>
BCOS_INLINE void each_lane(int64_t lanes, F&& body) {
  if (lanes == kLanes) {
#pragma omp simd
    for (int64_t c = 0; c < kLanes; c++) body(c);
  } else {
    for (int64_t c = 0; c < lanes; c++) body(c);
  }
}

// Fills rows [first - margin, first + rows + margin) of the zero-padded image: body(row, column, pixel
// index).
template <typename F>
BCOS_INLINE void fill(const Tile& tile, const DepthwiseShape& s, const Unit& u, int64_t margin, int64_t width,
                      F&& body) {
  const Vec zero = {};
  for (int64_t r = 0; r < u.rows + 2 * margin; r++) {
    Vec* row = tile.row(r);
    const int64_t h = u.first - margin + r;
    if (h < 0 || h >= s.height) {
      std::fill_n(row, width, zero);
      continue;
    }
    std::fill_n(row, margin, zero);
    std::fill_n(row + margin + s.width, width - margin - s.width, zero);
    if (u.lanes < kLanes) std::fill_n(row + margin, s.width, zero);
    for (int64_t w = 0; w < s.width; w++) body(r, w + margin, u.at(s, h, w));
  }
}

template <Power P, typename T, typename U>
BCOS_INLINE void forward_units(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end) {
  const auto& s = f.shape;
  const auto k = f.k;
  const int64_t K = s.kernel, margin = K / 2;
  const int64_t wide = (s.width + kStep - 1) / kStep * kStep, padded = wide + K - 1;
  const Tile tile(s.band + 2 * margin, padded), taps(1, K * K);
  const Tile rows(3, padded + 2 * K);  // box writes and reads whole groups of K
  for (int64_t index = begin; index < end; index++) {
    const Unit u(s, index);
    std::copy_n(f.taps + u.block * K * K * kLanes, K * K * kLanes, taps.lanes(0, 0));
    fill(tile, s, u, margin, padded, [&](int64_t r, int64_t w, int64_t from) {
      float* to = tile.lanes(r, w);
      const T* x = f.x + from;
      each_lane(u.lanes, [&](int64_t c) { to[c] = float(x[c]); });
    });
    const float* bias = f.bias + u.channel;
    for (int64_t r = 0; r < u.rows; r++) {
      correlate_row(K, tile, r, taps.row(0), wide, rows.row(0));
      if constexpr (P != Power::One) square_box_row(K, tile, r, wide, rows.row(2), rows.row(1));
      for (int64_t w = 0; w < s.width; w++) {
        const int64_t to = u.at(s, u.first + r, w);
        const float *z = rows.lanes(0, w), *q = rows.lanes(1, w);
        U *y = f.y + to, *l = shift(f.l, to);
        each_lane(u.lanes, [&](int64_t c) {
          const float linear = z[c] + bias[c];
          float inverse = 0;
          if constexpr (P != Power::One) {
            inverse = safe_inverse(root_norm(q[c], k));
          }
          if constexpr (P == Power::General) l[c] = U(linear);
          y[c] = U(scaled<P>(linear, inverse, k));
        });
      }
    }
  }
}

template <Power P, typename T, typename U>
BCOS_INLINE bool backward_units(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end) {
  const auto& s = f.shape;
  const auto k = f.k;
  const int64_t K = s.kernel, margin = K / 2;
  constexpr bool normed = P != Power::One;
  const bool with_t = normed && f.dx && k.unfrozen != 0;
  const int64_t wide = (s.width + kStep - 1) / kStep * kStep, padded = wide + K - 1,
                height = s.band + 2 * margin;
  const Tile du(height, padded), taps(1, K * K), t(with_t ? height : 0, padded);
  const Tile rows(3, padded + 2 * K);  // box writes and reads whole groups of K
  // reaches two margins beyond the band: the norms of the pixels that the band's window takes need it
  const Tile x(normed || f.dtaps ? height + 2 * margin : 0, padded + 2 * K);
  const float zero_norm = root_norm(0.f, k);
  float lowest[kLanes];
  std::fill_n(lowest, kLanes, std::numeric_limits<float>::infinity());
  for (int64_t index = begin; index < end; index++) {
    const Unit u(s, index);
    std::copy_n(f.taps + u.block * K * K * kLanes, K * K * kLanes, taps.lanes(0, 0));
    if (normed || f.dtaps)
      fill(x, s, u, 2 * margin, padded + 2 * margin, [&](int64_t r, int64_t w, int64_t from) {
        float* to = x.lanes(r, w);
        const T* in = f.x + from;
        each_lane(u.lanes, [&](int64_t c) { to[c] = float(in[c]); });
      });
    if (with_t)
      fill(t, s, u, margin, padded, [](int64_t, int64_t, int64_t) {});  // its inside comes with du's
    fill(du, s, u, margin, padded, [&](int64_t r, int64_t w, int64_t from) {
      if (normed && w == margin) square_box_row(K, x, r, s.width + margin, rows.row(2), rows.row(1));
      const U *grad = f.grad + from, *y = shift(f.y, from), *l = shift(f.l, from);
      const float* q = rows.lanes(1, w);
      float *to = du.lanes(r, w), *to_t = with_t ? t.lanes(r, w) : rows.lanes(0, 0);
      each_lane(u.lanes, [&](int64_t c) {
        const float norm = normed ? root_norm(q[c], k) : 0.f, g = float(grad[c]);
        const auto d = partials<P>(P == Power::Two ? float(y[c]) : 0.f,
                                   P == Power::General ? float(l[c]) : 0.f, safe_inverse(norm), k);
        to[c] = g * d.l;
        if constexpr (normed) to_t[c] = g * d.n * root_gradient(norm, k);
        if constexpr (P == Power::Two) lowest[c] = norm < lowest[c] ? norm : lowest[c];
      });
    });
    if (f.dbias) {
      float* dbias = f.dbias + u.channel;
      for (int64_t r = 0; r < u.rows; r++)
        for (int64_t w = 0; w < s.width; w++) {
          const float* g = du.lanes(r + margin, w + margin);
          each_lane(u.lanes, [&](int64_t c) { dbias[c] += g[c]; });
        }
    }
    if (f.dtaps) wgrad_band(K, du, x, u.rows, s.width, f.dtaps + u.block * K * K * kLanes);
    if (!f.dx) continue;
    for (int64_t r = 0; r < u.rows; r++) {
      correlate_row(K, du, r, taps.row(0), wide, rows.row(0));
      if (with_t) box_row(K, t, r, wide, rows.row(2), rows.row(1));
      for (int64_t w = 0; w < s.width; w++) {
        const int64_t to = u.at(s, u.first + r, w);
        const float *product = rows.lanes(0, w), *spread = rows.lanes(1, w);
        const T* in = f.x + to;
        T* dx = f.dx + to;
        if (with_t) {
          each_lane(u.lanes, [&](int64_t c) { dx[c] = T(product[c] + float(in[c]) * spread[c]); });
        } else {
          each_lane(u.lanes, [&](int64_t c) { dx[c] = T(product[c]); });
        }
      }
    }
  }
  return *std::min_element(lowest, lowest + kLanes) == zero_norm;
}

// body(power) with the power as a constant of the compiler
template <typename F>
BCOS_INLINE auto by_power(Power power, F&& body) {
  switch (power) {
    case Power::One:
      return body(std::integral_constant<Power, Power::One>{});
    case Power::Two:
      return body(std::integral_constant<Power, Power::Two>{});
    default:
      return body(std::integral_constant<Power, Power::General>{});
  }
}

template <typename T, typename U>
BCOS_INLINE void forward(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end) {
  by_power(f.shape.power, [&](auto power) BCOS_INLINE_BODY { forward_units<power()>(f, begin, end); });
}

template <typename T, typename U>
BCOS_INLINE bool backward(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end) {
  return by_power(f.shape.power,
                  [&](auto power) BCOS_INLINE_BODY { return backward_units<power()>(f, begin, end); });
}

}  // namespace
}  // namespace bcos::transform::cpu
