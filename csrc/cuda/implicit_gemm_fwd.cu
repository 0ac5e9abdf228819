// Convolution as an implicit matrix product with the norm and the scale inside: rows of C are output pixels,
// columns filters of a group, k channels of all taps.
#include "cuda/launch.h"
#include "cuda/tile.cuh"
#include "cuda/window.cuh"

namespace bcos::cuda {
namespace {

constexpr int kOutside = -(1 << 30);  // a coordinate that no window reaches

// Which outputs a block forms. Tiles of columns hold whole outputs.
template <typename Tile>
struct Place {
  int group, tile_n, row0, outputs, filter0;  // outputs of a full tile; filter0 within the group
  __device__ explicit Place(const Shape& s) {
    outputs = Tile::BN / s.max_out;
    const int tiles_n = int(ceil_div(s.FG / s.max_out, outputs));
    group = blockIdx.y;
    tile_n = blockIdx.x % tiles_n;
    row0 = blockIdx.x / tiles_n * Tile::BM;
    filter0 = tile_n * outputs * s.max_out;
  }
};

// Fetches x and w: chunks of 16 bytes of one tap where
// ALIGNED, else values of taps x channels walked as one axis.
template <typename Tile, bool ALIGNED>
struct Loader {
  using T = typename Tile::T;
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int V = kVector<T>, kCopies = Tile::kCopies;

  const ImplicitGemmFwd& p;
  const Shape& s;
  const T *x, *w;        // of the group
  int chunk, first_row;  // the thread's place in a stage
  int top[kCopies], left[kCopies], filter[kCopies];
  int64_t image[kCopies];    // its first pixel
  int i = 0, j = 0, k0 = 0;  // of the next step: the tap and the first channel, or the first of all values
  Vector<T> a[ALIGNED ? 1 : kCopies], b[ALIGNED ? 1 : kCopies];

  __device__ Loader(const ImplicitGemmFwd& params, const Place<Tile>& place) : p(params), s(params.shape) {
    const Window& window = s.window;
    x = static_cast<const T*>(p.x) + place.group * s.CG;
    w = static_cast<const T*>(p.w) + int64_t(place.group) * s.FG * window.KH * window.KW * s.CG;
    chunk = threadIdx.x % 4;
    first_row = threadIdx.x / 4;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int row = first_row + r * (Tile::kThreads / 4), site = place.row0 + row;
      const bool known = within(site, s.N * window.OH * window.OW);
      const Pixel at = pixel(known ? site : 0, window.OH, window.OW);
      top[r] = known ? at.row * window.SH - window.PH : kOutside;
      left[r] = at.column * window.SW - window.PW;
      image[r] = at.image * window.H * window.W;
      filter[r] = within(row, place.outputs * s.max_out) && within(place.filter0 + row, s.FG)
                      ? place.filter0 + row
                      : -1;
    }
  }

  __device__ __forceinline__ int64_t offset(int r, int h, int v, int c) const {
    return (image[r] + int64_t(h) * s.window.W + v) * (int64_t(s.G) * s.CG) + c;
  }

  __device__ __forceinline__ void start(uint32_t stage) {
    const Window& window = s.window;
    if constexpr (ALIGNED) {
      const int c = k0 + chunk * V, tap = i * window.KW + j;
      const bool known = within(c, s.CG);
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const int row = first_row + r * (Tile::kThreads / 4);
        const int h = top[r] + i * window.DH, v = left[r] + j * window.DW;
        const bool sees = known && within(h, window.H) && within(v, window.W);
        copy_async(stage + A::at(row, chunk), x + (sees ? offset(r, h, v, c) : 0), sees);
        const bool live = known && filter[r] >= 0;
        const int64_t from = (int64_t(filter[r]) * (window.KH * window.KW) + tap) * s.CG + c;
        copy_async(stage + A::kBytes + B::at(row, chunk), w + (live ? from : 0), live);
      }
      k0 += Tile::BK;
      if (k0 >= s.CG) {
        k0 = 0;
        if (++j == window.KW) j = 0, ++i;
      }
    } else {
      const int K = window.KH * window.KW * s.CG;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int k = k0 + chunk * V + e, tap = k / s.CG;
        const int down = tap / window.KW * window.DH, along = tap % window.KW * window.DW;
#pragma unroll
        for (int r = 0; r < kCopies; ++r) {
          const int h = top[r] + down, v = left[r] + along;
          const bool sees = k < K && within(h, window.H) && within(v, window.W);
          a[r].v[e] = sees ? x[offset(r, h, v, k % s.CG)] : rounded<T>(0);
          b[r].v[e] = k < K && filter[r] >= 0 ? w[int64_t(filter[r]) * K + k] : rounded<T>(0);
        }
      }
      k0 += Tile::BK;
    }
  }

  __device__ __forceinline__ void finish(uint32_t stage) {
    if constexpr (!ALIGNED) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const int row = first_row + r * (Tile::kThreads / 4);
        shared_store(stage + A::at(row, chunk), a[r]);
        shared_store(stage + A::kBytes + B::at(row, chunk), b[r]);
      }
    }
  }

  __device__ int steps() const {
    const int taps = s.window.KH * s.window.KW;
    return ALIGNED ? taps * int(ceil_div(s.CG, Tile::BK)) : int(ceil_div(int64_t(taps) * s.CG, Tile::BK));
  }
};

// Leaves 1/n of each row in shared memory, and n where it is saved.
template <typename Tile>
__device__ __forceinline__ void form_norms(const ImplicitGemmFwd& p, const Place<Tile>& place, Tile& tile) {
  const Window& window = p.shape.window;
  if (p.squares == nullptr) tile.share_sums();
  for (int row = threadIdx.x; row < Tile::BM; row += Tile::kThreads) {
    const int site = place.row0 + row;
    if (!within(site, p.shape.N * window.OH * window.OW)) continue;
    const float squares =
        p.squares == nullptr
            ? Tile::row_value(row)
            : window_sum(p.squares, window, pixel(site, window.OH, window.OW), place.group, p.shape.G);
    const float n = root_norm(squares, constants(p.formula));
    if (p.n != nullptr && place.tile_n == 0) p.n[int64_t(site) * p.shape.G + place.group] = n;
    shared_store(Tile::kSums + row * 4, safe_inverse(n));
  }
}

// V neighbouring outputs of a row to a thread; b = 1 and b = 2 without a maximum.
template <int V, typename Tile>
__device__ __forceinline__ void store_vectors(const ImplicitGemmFwd& p, const Place<Tile>& place) {
  const Shape& s = p.shape;
  const Constants<float> k = constants(p.formula);
  const bool has_norm = p.formula.power == Power::Two;
  for (int at = threadIdx.x; at < Tile::BM * (Tile::BN / V); at += Tile::kThreads) {
    const int row = at / (Tile::BN / V), column = at % (Tile::BN / V) * V, filter = place.filter0 + column;
    const int site = place.row0 + row;
    if (!within(site, s.N * s.window.OH * s.window.OW) || !within(filter, s.FG)) continue;
    const float inv_n = has_norm ? Tile::row_value(row) : 0.f;
    float y[V];
#pragma unroll
    for (int e = 0; e < V; ++e) {
      float l = Tile::product(row, column + e);
      const int f = place.group * s.FG + filter + e;
      if (p.alpha != nullptr) l *= p.alpha[f];
      if (p.bias != nullptr) l += load_as(p.bias, p.bias_dtype, f);
      y[e] = has_norm ? transform<Power::Two>(l, inv_n, k) : transform<Power::One>(l, inv_n, k);
    }
    const int64_t to = (int64_t(site) * s.G + place.group) * s.FG + filter;
    if (p.out_dtype == p.dtype)
      store(static_cast<typename Tile::T*>(p.y), to, y, true);
    else
      store(static_cast<float*>(p.y), to, y, true);
  }
}

// One output to a thread; everything.
template <typename Tile>
__device__ __forceinline__ void store_values(const ImplicitGemmFwd& p, const Place<Tile>& place) {
  const Shape& s = p.shape;
  const Constants<float> k = constants(p.formula);
  const bool has_norm = p.formula.power != Power::One;
  const int OG = s.FG / s.max_out;
  for (int at = threadIdx.x; at < Tile::BM * place.outputs; at += Tile::kThreads) {
    const int row = at / place.outputs, column = at % place.outputs;
    const int site = place.row0 + row, output = place.tile_n * place.outputs + column;
    if (!within(site, s.N * s.window.OH * s.window.OW) || !within(output, OG)) continue;
    float best = 0;
    int winner = 0;
    for (int slot = 0; slot < s.max_out; ++slot) {
      const int f = place.group * s.FG + output * s.max_out + slot;
      float l = Tile::product(row, column * s.max_out + slot);
      if (p.alpha != nullptr) l *= p.alpha[f];
      if (p.bias != nullptr) l += load_as(p.bias, p.bias_dtype, f);
      if (slot == 0 || replaces(l, best)) {
        best = l;
        winner = slot;
      }
    }
    const float inv_n = has_norm ? Tile::row_value(row) : 0.f;
    const int64_t to = (int64_t(site) * s.G + place.group) * OG + output;
    float y = best;
    by_power(p.formula.power,
             [&](auto exponent) { y = transform<decltype(exponent)::power>(best, inv_n, k); });
    store_as(p.y, p.out_dtype, to, y);
    if (p.l != nullptr) store_as(p.l, p.out_dtype, to, best);
    if (s.max_out > 1) p.winner[to] = uint8_t(winner);
  }
}

template <typename Tile, bool ALIGNED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, ALIGNED>)
    implicit_gemm_fwd_kernel(const ImplicitGemmFwd p) {
  const Place<Tile> place(p.shape);
  const bool has_norm = p.formula.power != Power::One;
  Tile tile;
  Loader<Tile, ALIGNED> loader(p, place);
  tile.multiply(loader, loader.steps(), has_norm && p.squares == nullptr);
  if (has_norm) form_norms(p, place, tile);
  tile.share_product();
  constexpr int V = kVector<typename Tile::T>;
  if (p.shape.max_out == 1 && p.shape.FG % V == 0 && p.formula.power != Power::General && p.l == nullptr)
    store_vectors<V>(p, place);
  else
    store_values(p, place);
}

template <typename T, bool TF32, bool LARGE, bool ALIGNED>
cudaError_t start_fwd(const ImplicitGemmFwd& p, cudaStream_t stream) {
  using Tile = TileOf<T, TF32, LARGE, true, true, RowSum::Squares>;
  const Shape& s = p.shape;
  const int64_t tiles_m = ceil_div(int64_t(s.N) * s.window.OH * s.window.OW, Tile::BM);
  const dim3 grid(tiles_m * ceil_div(s.FG / s.max_out, Tile::BN / s.max_out), s.G);
  return start(implicit_gemm_fwd_kernel<Tile, ALIGNED>, grid, Tile::kThreads, Tile::kShared, p, stream);
}

}  // namespace

cudaError_t implicit_gemm_fwd(const ImplicitGemmFwd& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.N) * s.window.OH * s.window.OW * s.FG == 0) return cudaSuccess;
  if (p.out_dtype != p.dtype && p.out_dtype != Dtype::Float32) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool aligned = s.CG % kVector<T> == 0;
    if constexpr (sizeof(T) == 2) {
      if (aligned && p.large) return start_fwd<T, false, true, true>(p, stream);
    } else if (p.tf32) {
      return aligned ? start_fwd<T, true, false, true>(p, stream)
                     : start_fwd<T, true, false, false>(p, stream);
    }
    return aligned ? start_fwd<T, false, false, true>(p, stream)
                   : start_fwd<T, false, false, false>(p, stream);
  });
}

}  // namespace bcos::cuda
