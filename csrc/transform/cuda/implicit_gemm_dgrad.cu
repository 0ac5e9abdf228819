// The input's gradient as an implicit matrix product: rows of C are input pixels, columns channels of a
// group, k filters of all taps. The norm's own term covers the same taps and is added on the way. A group is
// a pack of them where they are narrow and u is given.
#include "common/cuda/tile.cuh"
#include "transform/cuda/launch.h"
#include "transform/cuda/packing.cuh"
#include "transform/cuda/u_chunk.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda {
namespace {

// Fetches u and w. COPIED: u is given, and both go to shared memory in chunks of 16 bytes.
template <typename Tile, bool COPIED>
struct Loader {
  using T = typename Tile::T;
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int V = kVector<T>, kCopies = Tile::kCopies, kRows = Tile::kThreads / B::kChunks;
  static constexpr bool kDirect = COPIED;

  const ImplicitGemmDgrad& p;
  const Shape& s;
  int group, channel;
  uint32_t u_to, w_to;             // the shared addresses of the thread's first chunks of a unit
  int width, height, piece;        // of a pack: a group's channels and filters, and the bytes of a copy
  int own[Tile::kPacked ? 4 : 1];  // the group within a pack of each 4 bytes of the chunk
  Pixel at[kCopies];
  bool known[kCopies];
  int64_t site[COPIED ? 1 : kCopies];    // the output that reads the pixel, or -1
  const T* given[COPIED ? kCopies : 1];  // the thread's chunk of the first filter in that output's u
  int reads[COPIED ? kCopies : 1];       // the filters to fetch of it: all, or none without such an output
  const T* w[kCopies];                   // the thread's chunk of the first tap and filter
  int i = 0, j = 0, f0 = 0;              // of the next unit
  int64_t ahead = 0;                     // from there to the tap and to filter f0
  int filter = 0;                        // of the chunk in flight
  UChunk<T> u[COPIED ? 1 : kCopies];
  Vector<T> b[COPIED ? 1 : kCopies];
  float t[kCopies] = {};

  __device__ Loader(const ImplicitGemmDgrad& params, int pack, int row0, int channel0)
      : p(params), s(params.shape) {
    const Window& window = s.window;
    group = blockIdx.y;
    channel = channel0 + int(threadIdx.x % B::kChunks) * V;
    width = Tile::kPacked ? s.CG / pack : s.CG;
    height = s.FG / pack;
    u_to = kept(shared_address(A::at(row(0), chunk())));
    w_to = kept(shared_address(A::kBytes + B::at(depth(0), threadIdx.x % B::kChunks)));
    if constexpr (Tile::kPacked) {
      piece = piece_of(width * int(sizeof(T)));
#pragma unroll
      for (int word = 0; word < 4; ++word) own[word] = (channel + word * V / 4) / width;
    }
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int pixels = s.N * window.H * window.W, index = row0 + row(r);
      known[r] = within(index, pixels);
      at[r] = pixel(known[r] ? index : 0, window.H, window.W);
      w[r] = kept(static_cast<const T*>(p.w) + (int64_t(group) * s.FG + depth(r)) * taps() * width + channel);
    }
    enter_tap();
  }

  __device__ static int row(int r) { return threadIdx.x / 4 + r * (Tile::kThreads / 4); }
  __device__ static int chunk() { return threadIdx.x % 4; }
  __device__ static int depth(int r) { return threadIdx.x / B::kChunks + r * kRows; }
  __device__ int taps() const { return s.window.KH * s.window.KW; }
  __device__ int units() const { return taps() * int(ceil_div(s.FG, Tile::BK)); }

  __device__ __forceinline__ void enter_tap() {
    ahead = (i * s.window.KW + j) * width;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int64_t output = known[r] ? output_site(s.window, at[r], i, j) : -1;
      if constexpr (COPIED) {
        reads[r] = output >= 0 ? s.FG : 0;
        given[r] =
            static_cast<const T*>(p.u) + (output >= 0 ? (output * s.G + group) * s.FG : 0) + chunk() * V;
      } else {
        site[r] = output;
      }
    }
  }

  __device__ __forceinline__ void start(uint32_t unit) {
    filter = f0 + chunk() * V;
    const bool inside = within(channel, s.CG);
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      if constexpr (COPIED)
        copy_async(u_to + unit + r * (Tile::kThreads / 4 * 64), given[r] + f0, within(filter, reads[r]));
      else
        u[r].fetch(p, site[r], group, filter);
      const int k = depth(r), f = f0 + k;
      const uint32_t to = w_to + unit + r * (kRows * B::kChunks * 16);
      if constexpr (Tile::kPacked) {
        copy_pieces<T>(to, piece, [&](int e) {
          const int mine = own[e * 4 / V];
          return inside && within(f - mine * height, height) ? w[r] + (ahead + e - mine * width) : nullptr;
        });
      } else if (COPIED || s.CG % V == 0) {
        copy_async(to, w[r] + ahead, inside && within(f, s.FG));
      } else if constexpr (!COPIED) {
#pragma unroll
        for (int e = 0; e < V; ++e)
          b[r].v[e] = within(f, s.FG) && within(channel + e, s.CG) ? w[r][ahead + e] : rounded<T>(0);
      }
    }
    f0 += Tile::BK;
    ahead += int64_t(Tile::BK) * taps() * width;
    if (f0 >= s.FG) {
      f0 = 0;
      if (++j == s.window.KW) j = 0, ++i;
      enter_tap();
    }
  }

  __device__ __forceinline__ void finish(uint32_t unit) {
    if constexpr (!COPIED) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        shared_store(unit + A::at(row(r), chunk()), u[r].form(p, group, filter, t[r]));
        if (s.CG % V != 0) {
          shared_store(unit + A::kBytes + B::at(depth(r), threadIdx.x % B::kChunks), b[r]);
        }
      }
    }
  }
};

// u *^T w of an input pixel and a channel of a pack, over the channel's own group alone.
template <typename T>
__device__ float own_gradient(const ImplicitGemmDgrad& p, int pack, int group, int site, int channel) {
  const Shape& s = p.shape;
  const Window& window = s.window;
  if (!within(site, s.N * window.H * window.W) || !within(channel, s.CG)) return 0;
  const int width = s.CG / pack, height = s.FG / pack, taps = window.KH * window.KW;
  const int first = channel / width * height;  // filter
  const Pixel at = pixel(site, window.H, window.W);
  const T* u = static_cast<const T*>(p.u) + group * s.FG + first;
  const T* w = static_cast<const T*>(p.w) + (int64_t(group) * s.FG + first) * taps * width + channel % width;
  float sum = 0;
  for (int tap = 0; tap < taps; ++tap) {
    const int64_t from = output_site(window, at, tap);
#pragma unroll 1
    for (int f = 0; f < height; ++f)
      sum += (from < 0 ? 0.f : to_float(u[from * (s.G * s.FG) + f])) *
             to_float(w[(int64_t(f) * taps + tap) * width]);
  }
  return sum;
}

template <typename Tile, bool COPIED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, COPIED>)
    implicit_gemm_dgrad_kernel(const ImplicitGemmDgrad p, int pack) {
  using T = typename Tile::T;
  constexpr int V = kVector<T>;
  const Shape& s = p.shape;
  const Window& window = s.window;
  const int tiles_n = int(ceil_div(s.CG, Tile::BN)), pixels = s.N * window.H * window.W, group = blockIdx.y;
  const int row0 = blockIdx.x / tiles_n * Tile::BM, channel0 = blockIdx.x % tiles_n * Tile::BN;
  const bool with_t = !p.frozen && p.formula.power != Power::One;
  Tile tile;
  Loader<Tile, COPIED> loader(p, pack, row0, channel0);
  if constexpr (Tile::kPacked) tile.mark_diagonal(pack, loader.width, loader.height);
  tile.multiply(loader, loader.units(), false);

  if (!Tile::kPacked && with_t && p.u == nullptr) {
#pragma unroll
    for (int r = 0; r < Tile::kCopies; ++r) {
      const float t = lane_sum(loader.t[r], 4);
      if (threadIdx.x % 4 == 0) shared_store(Tile::kSums + loader.row(r) * 4, t);
    }
  } else if (with_t) {
    const int of_tile = Tile::kPacked ? pack : 1;
    for (int at = threadIdx.x; at < Tile::BM * of_tile; at += Tile::kThreads) {
      const int row = at / of_tile, own = at % of_tile;
      if (!within(row0 + row, pixels)) continue;
      const Pixel seen = pixel(row0 + row, window.H, window.W);
      shared_store(Tile::kPacked ? Tile::group_at(row, own) : Tile::kSums + row * 4,
                   pooled_sum(p.t, window, seen, group * of_tile + own, s.G * of_tile));
    }
  }
  tile.share_product(
      [&](int row, int column) { return own_gradient<T>(p, pack, group, row0 + row, channel0 + column); });
  const bool vector = s.CG % V == 0;
  for (int at = threadIdx.x; at < Tile::BM * (Tile::BN / V); at += Tile::kThreads) {
    const int row = at / (Tile::BN / V), column = at % (Tile::BN / V) * V, channel = channel0 + column;
    if (!within(row0 + row, pixels) || !within(channel, s.CG)) continue;
    const int64_t to = (int64_t(row0 + row) * s.G + group) * s.CG + channel;
    float t = with_t && !Tile::kPacked ? Tile::row_value(row) : 0.f;
    const T* x = static_cast<const T*>(p.x);
    T* dx = static_cast<T*>(p.dx);
    float values[V], old[V] = {};
    Tile::products(values, row, column);
    if (vector && with_t) load(old, x, to, true);
    Neighbours neighbours(column, loader.width);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      if (Tile::kPacked && with_t) t = Tile::group_value(row, neighbours.group_of(column + e));
      values[e] += old[e] * t;
    }
    if (vector) {
      store(dx, to, values, true);
    } else {
#pragma unroll
      for (int e = 0; e < V; ++e)
        if (within(channel + e, s.CG))
          dx[to + e] = rounded<T>(values[e] + (with_t ? to_float(x[to + e]) * t : 0.f));
    }
  }
}

}  // namespace

cudaError_t implicit_gemm_dgrad(const ImplicitGemmDgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.N) * s.window.H * s.window.W * s.CG == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  const bool given = p.u != nullptr;
  const auto copies = [&](int chunk) { return given && s.CG % chunk == 0 && s.FG % chunk == 0; };
  return by_kind(p, given, copies, [&](auto kind, int pack) {
    using K = decltype(kind);
    using Tile = TileOf<typename K::T, K::TF32, K::LARGE, true, false, RowSum::None,
                        K::PACKED ? Diagonal::B : Diagonal::None>;
    const int64_t tiles_m = ceil_div(int64_t(s.N) * s.window.H * s.window.W, Tile::BM);
    const dim3 grid(tiles_m * ceil_div(pack * s.CG, Tile::BN), s.G / pack);
    return start(implicit_gemm_dgrad_kernel<Tile, K::COPIED>, grid, Tile::kThreads, Tile::kShared, stream,
                 in_packs(p, pack), pack);
  });
}

}  // namespace bcos::transform::cuda
