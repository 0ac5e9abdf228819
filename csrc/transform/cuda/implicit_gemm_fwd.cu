// Convolution as an implicit matrix product with the norm and the scale inside: rows of C are output pixels,
// columns filters of a group, k channels of all taps. A group is a pack of them where they are narrow.
#include "common/cuda/tile.cuh"
#include "transform/cuda/formula.cuh"
#include "transform/cuda/launch.h"
#include "transform/cuda/packing.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda {
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
  static constexpr bool kDirect = ALIGNED;

  const Shape& s;
  int width, piece;      // channels of a filter, and the most bytes of them that a pack's copy takes
  int chunk, first_row;  // the thread's place in a unit
  int top[kCopies], left[kCopies];
  uint32_t to;               // the shared address of the thread's first chunk of a unit
  const T* x[kCopies];       // where the row's window begins: the thread's chunk of the first tap
  const T* w;                // likewise of the first row's filter
  int live[kCopies];         // the channels to fetch of it: all, or none where the tile has no such filter
  int sees[kCopies];         // likewise of x, none where the tap lies outside of the image
  int own[kCopies];          // the first channel of the filter's own group, within a pack
  int i = 0, j = 0, k0 = 0;  // of the next unit: the tap and the first channel, or the first of all values
  int64_t ahead = 0;         // from the window's first value to the tap's channel k0
  int w_ahead = 0;           // likewise in w
  Vector<T> a[ALIGNED ? 1 : kCopies], b[ALIGNED ? 1 : kCopies];

  __device__ Loader(const ImplicitGemmFwd& p, int pack, const Place<Tile>& place) : s(p.shape) {
    const Window& window = s.window;
    width = Tile::kPacked ? s.CG / pack : s.CG;
    piece = piece_of(width * int(sizeof(T)));
    chunk = threadIdx.x % 4;
    first_row = threadIdx.x / 4;
    to = kept(shared_address(A::at(first_row, chunk)));
    const int first = ALIGNED ? chunk * V : 0;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int row = first_row + r * (Tile::kThreads / 4), site = place.row0 + row;
      const bool known = within(site, s.N * window.OH * window.OW);
      const Pixel at = pixel(known ? site : 0, window.OH, window.OW);
      top[r] = known ? at.row * window.SH - window.PH : kOutside;
      left[r] = at.column * window.SW - window.PW;
      const int64_t line = at.image * window.H + at.row * window.SH - window.PH;
      x[r] =
          kept(static_cast<const T*>(p.x) + ((line * window.W + left[r]) * s.G + place.group) * s.CG + first);
      const int f = place.filter0 + row;
      live[r] = within(row, place.outputs * s.max_out) && within(f, s.FG) ? s.CG : 0;
      own[r] = Tile::kPacked ? f / (s.FG / pack) * width : 0;
    }
    const int64_t filter = int64_t(place.group) * s.FG + place.filter0 + first_row;
    w = kept(static_cast<const T*>(p.w) + filter * (window.KH * window.KW) * width + first);
    if (ALIGNED) enter_tap();
  }

  // From the first row's filter to that of copy r.
  __device__ __forceinline__ int64_t filters(int r) const {
    return int64_t(r) * (Tile::kThreads / 4) * (s.window.KH * s.window.KW) * width;
  }

  __device__ __forceinline__ void enter_tap() {
    const Window& window = s.window;
    const int down = i * window.DH, along = j * window.DW;
#pragma unroll
    for (int r = 0; r < kCopies; ++r)
      sees[r] = within(top[r] + down, window.H) && within(left[r] + along, window.W) ? s.CG : 0;
    ahead = (int64_t(down) * window.W + along) * (s.G * s.CG);
    w_ahead = (i * window.KW + j) * width;
  }

  __device__ __forceinline__ void start(uint32_t unit) {
    const Window& window = s.window;
    if constexpr (ALIGNED) {
      const int c = k0 + chunk * V;
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const uint32_t at = to + unit + r * (Tile::kThreads / 4 * 64);
        copy_async(at, x[r] + ahead, within(c, sees[r]));
        if constexpr (Tile::kPacked)
          copy_pieces<T>(at + A::kBytes, piece, [&](int e) {
            const bool inside = live[r] > 0 && within(c + e - own[r], width);
            return inside ? w + (filters(r) - own[r] + w_ahead + e) : nullptr;
          });
        else
          copy_async(at + A::kBytes, w + (filters(r) + w_ahead), within(c, live[r]));
      }
      k0 += Tile::BK;
      ahead += Tile::BK;
      w_ahead += Tile::BK;
      if (k0 >= s.CG) {
        k0 = 0;
        if (++j == window.KW) j = 0, ++i;
        enter_tap();
      }
    } else {
      const int K = window.KH * window.KW * s.CG;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const int k = k0 + chunk * V + e, tap = k / s.CG;
        const int down = tap / window.KW * window.DH, along = tap % window.KW * window.DW;
#pragma unroll
        for (int r = 0; r < kCopies; ++r) {
          const bool inside = k < K && within(top[r] + down, window.H) && within(left[r] + along, window.W);
          const int64_t pixels = int64_t(down) * window.W + along;
          a[r].v[e] = inside ? x[r][pixels * (s.G * s.CG) + k % s.CG] : rounded<T>(0);
          b[r].v[e] = k < K && live[r] > 0 ? w[filters(r) + k] : rounded<T>(0);
        }
      }
      k0 += Tile::BK;
    }
  }

  __device__ __forceinline__ void finish(uint32_t unit) {
    if constexpr (!ALIGNED) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        const int row = first_row + r * (Tile::kThreads / 4);
        shared_store(unit + A::at(row, chunk), a[r]);
        shared_store(unit + A::kBytes + B::at(row, chunk), b[r]);
      }
    }
  }

  __device__ int units() const {
    const int taps = s.window.KH * s.window.KW;
    return ALIGNED ? taps * int(ceil_div(s.CG, Tile::BK)) : int(ceil_div(int64_t(taps) * s.CG, Tile::BK));
  }
};

// Leaves 1/n of each row in shared memory, of a pack at the first word of each group; and n where it is
// saved. Words are the 4 bytes that A's rows are made of.
template <typename Tile>
__device__ __forceinline__ void form_norms(const ImplicitGemmFwd& p, int pack, const Place<Tile>& place,
                                           Tile& tile, int words) {
  const Window& window = p.shape.window;
  const int of_tile = Tile::kPacked ? pack : 1, groups = p.shape.G * of_tile;
  if (p.squares == nullptr) {
    if constexpr (Tile::kPacked)
      tile.share_word_sums();
    else
      tile.share_sums();
  }
  for (int at = threadIdx.x; at < Tile::BM * of_tile; at += Tile::kThreads) {
    const int row = at / of_tile, own = at % of_tile, site = place.row0 + row;
    if (!within(site, p.shape.N * window.OH * window.OW)) continue;
    const int group = place.group * of_tile + own;
    float squares = 0;
    if (p.squares != nullptr)
      squares = window_sum(p.squares, window, pixel(site, window.OH, window.OW), group, groups);
    else if (!Tile::kPacked)
      squares = Tile::row_value(row);
    else
      for (int word = 0; word < words; ++word) squares += Tile::group_value(row, own * words + word);
    const float n = root_norm(squares, constants(p.formula));
    if (p.n != nullptr && place.tile_n == 0) p.n[int64_t(site) * groups + group] = n;
    shared_store(Tile::kPacked ? Tile::group_at(row, own * words) : Tile::kSums + row * 4, safe_inverse(n));
  }
}

// x * w of an output pixel and a filter of a pack, over the filter's own group alone.
template <typename T>
__device__ float own_product(const ImplicitGemmFwd& p, int pack, int group, int site, int filter) {
  const Shape& s = p.shape;
  const Window& window = s.window;
  if (!within(site, s.N * window.OH * window.OW) || !within(filter, s.FG)) return 0;
  const int width = s.CG / pack, own = filter / (s.FG / pack);
  const Pixel at = pixel(site, window.OH, window.OW);
  const T* x = static_cast<const T*>(p.x) + group * s.CG + own * width;
  const T* w =
      static_cast<const T*>(p.w) + (int64_t(group) * s.FG + filter) * (window.KH * window.KW) * width;
  float sum = 0;
  for (int i = 0; i < window.KH; ++i)
    for (int j = 0; j < window.KW; ++j) {
      const int64_t from = input_site(window, at, i, j);
#pragma unroll 1
      for (int c = 0; c < width; ++c)
        sum += (from < 0 ? 0.f : to_float(x[from * (s.G * s.CG) + c])) * to_float(*w++);
    }
  return sum;
}

// V neighbouring outputs of a row to a thread; `width` filters and `words` of A to a group of a pack. b = 1
// and b = 2 without a maximum.
template <int V, typename Tile>
__device__ __forceinline__ void store_vectors(const ImplicitGemmFwd& p, const Place<Tile>& place, int words,
                                              int width) {
  const Shape& s = p.shape;
  const Constants<float> k = constants(p.formula);
  const bool has_norm = p.formula.power == Power::Two;
  for (int at = threadIdx.x; at < Tile::BM * (Tile::BN / V); at += Tile::kThreads) {
    const int row = at / (Tile::BN / V), column = at % (Tile::BN / V) * V, filter = place.filter0 + column;
    const int site = place.row0 + row;
    if (!within(site, s.N * s.window.OH * s.window.OW) || !within(filter, s.FG)) continue;
    float l[V], y[V];
    Tile::products(l, row, column);
    float inv_n = has_norm && !Tile::kPacked ? Tile::row_value(row) : 0.f;
    Neighbours neighbours(filter, width);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (Tile::kPacked && has_norm) inv_n = Tile::group_value(row, neighbours.group_of(filter + e) * words);
      const int f = place.group * s.FG + filter + e;
      if (p.alpha != nullptr) l[e] *= p.alpha[f];
      if (p.bias != nullptr) l[e] += load_as(p.bias, p.bias_dtype, f);
      y[e] = has_norm ? scaled<Power::Two>(l[e], inv_n, k) : scaled<Power::One>(l[e], inv_n, k);
    }
    const int64_t to = (int64_t(site) * s.G + place.group) * s.FG + filter;
    const bool wide = p.out_dtype == Dtype::Float32;
    store_output<typename Tile::T>(p.y, wide, to, y);
    if (p.l != nullptr) store_output<typename Tile::T>(p.l, wide, to, l);
  }
}

// One output to a thread; everything.
template <typename Tile>
__device__ __forceinline__ void store_values(const ImplicitGemmFwd& p, const Place<Tile>& place, int words,
                                             int width) {
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
    for (int m = 0; m < s.max_out; ++m) {
      const int f = place.group * s.FG + output * s.max_out + m;
      float l = Tile::product(row, column * s.max_out + m);
      if (p.alpha != nullptr) l *= p.alpha[f];
      if (p.bias != nullptr) l += load_as(p.bias, p.bias_dtype, f);
      if (m == 0 || replaces(l, best)) {
        best = l;
        winner = m;
      }
    }
    const int own = output * s.max_out / width;
    float inv_n = 0;
    if (has_norm) inv_n = Tile::kPacked ? Tile::group_value(row, own * words) : Tile::row_value(row);
    const int64_t to = (int64_t(site) * s.G + place.group) * OG + output;
    float y = best;
    by_power(p.formula.power, [&](auto power) { y = scaled<decltype(power)::value>(best, inv_n, k); });
    store_as(p.y, p.out_dtype, to, y);
    if (p.l != nullptr) store_as(p.l, p.out_dtype, to, best);
    if (s.max_out > 1) p.winner[to] = uint8_t(winner);
  }
}

template <typename Tile, bool ALIGNED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, ALIGNED>)
    implicit_gemm_fwd_kernel(const ImplicitGemmFwd p, int pack) {
  const Place<Tile> place(p.shape);
  const bool has_norm = p.formula.power != Power::One;
  const int width = p.shape.FG / pack;
  Tile tile;
  Loader<Tile, ALIGNED> loader(p, pack, place);
  if constexpr (Tile::kPacked) tile.mark_diagonal(pack, width, loader.width);
  tile.multiply(loader, loader.units(), has_norm && p.squares == nullptr);
  const int words = loader.width * int(sizeof(typename Tile::T)) / 4;
  if (has_norm) form_norms(p, pack, place, tile, words);
  tile.share_product([&](int row, int column) {
    return own_product<typename Tile::T>(p, pack, place.group, place.row0 + row, place.filter0 + column);
  });
  constexpr int V = kVector<typename Tile::T>;
  if (p.shape.max_out == 1 && p.shape.FG % V == 0 && p.formula.power != Power::General)
    store_vectors<V>(p, place, words, width);
  else
    store_values(p, place, words, width);
}

}  // namespace

cudaError_t implicit_gemm_fwd(const ImplicitGemmFwd& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.N) * s.window.OH * s.window.OW * s.FG == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype) || !is_known(p.bias_dtype)) return cudaErrorInvalidValue;
  if (s.max_out > kMostMaxOut) return cudaErrorInvalidValue;
  const auto copies = [&](int chunk) { return s.CG % chunk == 0; };
  return by_kind(p, true, copies, [&](auto kind, int pack) {
    using K = decltype(kind);
    using Tile = TileOf<typename K::T, K::TF32, K::LARGE, true, true, RowSum::Squares,
                        K::PACKED ? Diagonal::B : Diagonal::None>;
    const int64_t tiles_m = ceil_div(int64_t(s.N) * s.window.OH * s.window.OW, Tile::BM);
    const int64_t tiles_n = ceil_div(pack * s.FG / s.max_out, Tile::BN / s.max_out);
    return start(implicit_gemm_fwd_kernel<Tile, K::COPIED>, dim3(tiles_m * tiles_n, s.G / pack),
                 Tile::kThreads, Tile::kShared, stream, in_packs(p, pack), pack);
  });
}

}  // namespace bcos::transform::cuda
