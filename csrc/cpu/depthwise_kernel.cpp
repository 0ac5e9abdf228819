#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "cpu/depthwise.h"

namespace bcos::cpu {
namespace {

#if defined(__GNUC__)
typedef float Vec __attribute__((vector_size(64), aligned(64)));
#else
struct Vec {  // never run: depthwise_serves says no to this compiler
  float v[16];
  float& operator[](int i) { return v[i]; }
  Vec operator*(const Vec&) const { return *this; }
  Vec& operator+=(const Vec&) { return *this; }
};
#endif

constexpr int kStep = 7;  // output pixels held in registers: divides the widths 56, 28, 14 and 7

// Scratch of one thread: rows of pixels of kLanes channels.
class Tile {
 public:
  Tile(int64_t rows, int64_t width) : width_(width), store_(rows * width + 1) {
    const auto address = reinterpret_cast<uintptr_t>(store_.get());
    data_ = reinterpret_cast<Vec*>((address + 63) / 64 * 64);
  }
  Vec* row(int64_t r) const { return data_ + r * width_; }
  float* lanes(int64_t r, int64_t w) const { return reinterpret_cast<float*>(row(r) + w); }

 private:
  struct Store {
    explicit Store(int64_t n) : p(new float[n * kLanes]) {}
    float* get() const { return p.get(); }
    std::unique_ptr<float[]> p;
  };
  int64_t width_;
  Store store_;
  Vec* data_;
};

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

// out[w] = sum over taps of tile[r + i][w + j] * taps[i][j]
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

// out[w] = sum over the window of tile[r + i][w + j], or of its square
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

// dtaps[i][j] += sum over the band's pixels of u * x shifted by (i, j); x has twice the margin of u
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
    default:
      return body(std::integral_constant<int, 7>{});
  }
}

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

template <Power P, typename T, typename U>
BCOS_INLINE void forward(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end) {
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
          y[c] = U(transform<P>(linear, inverse, k));
        });
      }
    }
  }
}

template <Power P, typename T, typename U>
BCOS_INLINE bool backward(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end) {
  const auto& s = f.shape;
  const auto k = f.k;
  const int64_t K = s.kernel, margin = K / 2;
  constexpr bool normed = P != Power::One;
  const bool with_t = normed && f.dx && k.detached != 0;
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

}  // namespace

#define BCOS_DEFINE(T, U)                                                                           \
  BCOS_CLONES void run(const DepthwiseForward<T, U>& f, int64_t begin, int64_t end) {               \
    by_power(f.shape.power, [&](auto power) BCOS_INLINE_BODY { forward<power()>(f, begin, end); }); \
  }                                                                                                 \
  BCOS_CLONES bool run(const DepthwiseBackward<T, U>& f, int64_t begin, int64_t end) {              \
    return by_power(f.shape.power,                                                                  \
                    [&](auto power) BCOS_INLINE_BODY { return backward<power()>(f, begin, end); }); \
  }
BCOS_DEFINE(float, float)
BCOS_DEFINE(c10::BFloat16, c10::BFloat16)
BCOS_DEFINE(c10::BFloat16, float)

}  // namespace bcos::cpu
