// The weight's gradient as an implicit matrix product: rows of C are filters of a group, columns channels of
// a tap, k output pixels. Shares of the pixels are summed apart and added afterwards, alike in every run. A
// group is a pack of them where they are narrow and u is given.
#include "common/cuda/tile.cuh"
#include "transform/cuda/launch.h"
#include "transform/cuda/packing.cuh"
#include "transform/cuda/u_chunk.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda {
namespace {

// Where a block works. `flat` walks taps x channels as one axis
// of columns, for channels that are no chunks of 16 bytes.
struct Place {
  int group, tap, filter0, column0, columns;
  bool flat;
};

template <typename Tile>
__device__ __forceinline__ Place place_of(const Shape& s) {
  Place place;
  const int taps = s.window.KH * s.window.KW;
  place.flat = s.CG % kVector<typename Tile::T> != 0;
  place.columns = place.flat ? taps * s.CG : s.CG;
  const int tiles_n = int(ceil_div(place.columns, Tile::BN));
  place.filter0 = blockIdx.x / tiles_n * Tile::BM;
  place.column0 = blockIdx.x % tiles_n * Tile::BN;
  place.group = place.flat ? blockIdx.y : blockIdx.y / taps;
  place.tap = place.flat ? 0 : blockIdx.y % taps;
  return place;
}

// Fetches u and x, a row for each output pixel. COPIED:
// u is given, and both are copied in chunks of 16 bytes.
template <typename Tile, bool COPIED>
struct Loader {
  using T = typename Tile::T;
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int V = kVector<T>, kCopies = Tile::kCopies, kRows = Tile::kThreads / A::kChunks;
  static constexpr bool kDirect = COPIED;
  static_assert(A::kChunks == B::kChunks);

  const ImplicitGemmWgrad& p;
  const Shape& s;
  const Place& place;
  int pixels, block, filter, column, i, j;  // i, j: the tap
  uint32_t to;                              // the shared address of the thread's first chunk of a unit
  Pixel stride;                             // how far a unit takes the rows' output pixels
  // Of the rows in the next unit. COPIED: the thread's chunks, and the input pixel that they are taken from.
  Pixel at[COPIED ? 1 : kCopies];
  const T *given, *input[COPIED ? kCopies : 1];  // of u the first row's
  int h[COPIED ? kCopies : 1], v[COPIED ? kCopies : 1];
  int remaining;  // pixels from the thread's first row to the end
  UChunk<T> u[COPIED ? 1 : kCopies];
  Vector<T> x[COPIED ? 1 : kCopies];

  __device__ Loader(const ImplicitGemmWgrad& params, const Place& where)
      : p(params), s(params.shape), place(where) {
    pixels = s.N * s.window.OH * s.window.OW;
    block = blockIdx.z;
    filter = place.filter0 + chunk() * V;
    column = place.column0 + chunk() * V;
    i = place.tap / s.window.KW;
    j = place.tap % s.window.KW;
    to = kept(shared_address(A::at(row(0), chunk())));
    remaining = int(pixels - int64_t(block) * Tile::BK) - row(0);
    const int64_t first_pixel = int64_t(block) * Tile::BK + row(0);
    given = kept(static_cast<const T*>(p.u) + (first_pixel * s.G + place.group) * s.FG + filter);
    const Window& window = s.window;
    const int64_t step = int64_t(p.splits) * Tile::BK;  // past the last pixel nothing is read
    stride = pixel(int(step < pixels ? step : 0), window.OH, window.OW);
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int64_t index = int64_t(block) * Tile::BK + row(r);
      const Pixel first = pixel(int(index < pixels ? index : 0), window.OH, window.OW);
      if constexpr (COPIED) {
        h[r] = first.row * window.SH - window.PH + i * window.DH;
        v[r] = first.column * window.SW - window.PW + j * window.DW;
        const int64_t site = (first.image * window.H + h[r]) * window.W + v[r];
        input[r] = kept(static_cast<const T*>(p.x) + (site * s.G + place.group) * s.CG + column);
      } else {
        at[r] = first;
      }
    }
  }

  __device__ static int chunk() { return threadIdx.x % A::kChunks; }
  __device__ static int row(int r) { return threadIdx.x / A::kChunks + r * kRows; }
  __device__ int units() const {
    const int blocks = int(ceil_div(pixels, Tile::BK));
    return block < blocks ? int(ceil_div(blocks - block, p.splits)) : 0;
  }

  __device__ __forceinline__ void start(uint32_t unit) {
    if constexpr (COPIED)
      copy(unit);
    else
      fetch(unit);
  }

  __device__ __forceinline__ void copy(uint32_t unit) {
    const Window& window = s.window;
    const int C = s.G * s.CG;
    const int64_t row_of_outputs = int64_t(window.SH) * window.W - int64_t(window.OW) * window.SW;
    const int64_t image = (int64_t(window.H) - int64_t(window.OH) * window.SH) * window.W;
    const int64_t all =
        ((stride.image * window.H + stride.row * window.SH) * window.W + stride.column * window.SW);
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const bool known = r * kRows < remaining;
      const uint32_t chunks = to + unit + r * (kRows * A::kChunks * 16);
      copy_async(chunks, given + int64_t(r * kRows) * (s.G * s.FG), known && within(filter, s.FG));
      const bool sees = within(h[r], window.H) && within(v[r], window.W);
      copy_async(chunks + A::kBytes, input[r], known && sees && within(column, s.CG));
      input[r] += all * C;
      h[r] += stride.row * window.SH;
      v[r] += stride.column * window.SW;
      if (v[r] >= window.OW * window.SW - window.PW + j * window.DW) {
        v[r] -= window.OW * window.SW;
        h[r] += window.SH;
        input[r] += row_of_outputs * C;
      }
      if (h[r] >= window.OH * window.SH - window.PH + i * window.DH) {
        h[r] -= window.OH * window.SH;
        input[r] += image * C;
      }
    }
    given += int64_t(p.splits) * Tile::BK * (s.G * s.FG);
    remaining -= p.splits * Tile::BK;
  }

  __device__ __forceinline__ void fetch(uint32_t unit) {
    const Window& window = s.window;
    const T* from = static_cast<const T*>(p.x) + place.group * s.CG;
    const int C = s.G * s.CG;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int64_t index = int64_t(block) * Tile::BK + row(r);
      const bool known = index < pixels;
      u[r].fetch(p, known ? index : -1, place.group, filter);
      if (!place.flat) {
        const int64_t site = input_site(window, at[r], i, j);
        const bool sees = known && site >= 0 && within(column, s.CG);
        copy_async(to + unit + A::kBytes + r * (kRows * A::kChunks * 16),
                   from + (sees ? site * C + column : 0), sees);
      } else {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const int tap = (column + e) / s.CG;
          const int64_t site = input_site(window, at[r], tap / window.KW, tap % window.KW);
          const bool sees = known && site >= 0 && within(column + e, place.columns);
          x[r].v[e] = sees ? from[site * C + (column + e) % s.CG] : rounded<T>(0);
        }
      }
      advance(at[r], stride, window.OH, window.OW);
    }
    block += p.splits;
  }

  __device__ __forceinline__ void finish(uint32_t unit) {
    if constexpr (!COPIED) {
      float t = 0;  // dgrad's
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        shared_store(unit + A::at(row(r), chunk()), u[r].form(p, place.group, filter, t));
        if (place.flat) shared_store(unit + A::kBytes + B::at(row(r), chunk()), x[r]);
      }
    }
  }
};

template <typename Tile, bool COPIED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, COPIED>)
    implicit_gemm_wgrad_kernel(const ImplicitGemmWgrad p, int pack) {
  const Shape& s = p.shape;
  const Place place = place_of<Tile>(s);
  const int width = s.CG / pack, height = s.FG / pack;  // of a group of a pack
  const bool leads = p.dbias != nullptr && place.column0 == 0 && place.tap == 0;
  Tile tile;
  Loader<Tile, COPIED> loader(p, place);
  if constexpr (Tile::kPacked) tile.mark_diagonal(pack, width, height);
  tile.multiply(loader, loader.units(), leads);

  const int64_t K = int64_t(s.window.KH) * s.window.KW * width, filters = int64_t(s.G) * s.FG;
  const int64_t first = blockIdx.z * filters + place.group * s.FG;
  const bool paired = width % 2 == 0;  // two columns at once
#pragma unroll
  for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int f = place.filter0 + tile.row_of(i, e / 2),
                  column = place.column0 + tile.column_of(j) + e % 2;
        const int own = Tile::kPacked ? column / width : 0;
        if (!within(f, s.FG) || !within(column, place.columns) || (Tile::kPacked && f / height != own))
          continue;
        float* to = p.dw + (first + f) * K + place.tap * width + column - own * width;
        if (!paired)
          *to = tile.c[i][j][e];
        else if (e % 2 == 0)
          *reinterpret_cast<float2*>(to) = {tile.c[i][j][e], tile.c[i][j][e + 1]};
      }
  if (!leads) return;
  tile.share_sums();
  for (int row = threadIdx.x; row < Tile::BM; row += Tile::kThreads)
    if (within(place.filter0 + row, s.FG)) p.dbias[first + place.filter0 + row] = Tile::row_value(row);
}

}  // namespace

cudaError_t implicit_gemm_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.FG) * s.CG == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  const bool given = p.u != nullptr;
  const auto copies = [&](int chunk) { return given && s.CG % chunk == 0 && s.FG % chunk == 0; };
  return by_kind(p, given, copies, [&](auto kind, int pack) {
    using K = decltype(kind);
    using Tile = TileOf<typename K::T, K::TF32, K::LARGE, false, false, RowSum::Plain,
                        K::PACKED ? Diagonal::C : Diagonal::None>;
    const int taps = s.window.KH * s.window.KW, groups = s.G / pack;
    const bool flat = pack * s.CG % kVector<typename K::T> != 0;
    const int64_t tiles_n = ceil_div(int64_t(flat ? taps : 1) * pack * s.CG, Tile::BN);
    const dim3 grid(ceil_div(pack * s.FG, Tile::BM) * tiles_n, flat ? groups : groups * taps, p.splits);
    return start(implicit_gemm_wgrad_kernel<Tile, K::COPIED>, grid, Tile::kThreads, Tile::kShared, stream,
                 in_packs(p, pack), pack);
  });
}

}  // namespace bcos::transform::cuda
