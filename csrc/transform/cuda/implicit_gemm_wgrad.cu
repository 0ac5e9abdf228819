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
  static_assert(A::kChunks == B::kChunks);

  const ImplicitGemmWgrad& p;
  const Shape& s;
  const Place& place;
  int pixels, block, filter, column, i, j;  // i, j: the tap
  Pixel at[kCopies], stride;  // the rows' output pixels in the next step, and how far a step takes them
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
    const Window& window = s.window;
    const int64_t step = int64_t(p.splits) * Tile::BK;  // past the last pixel nothing is read
    stride = pixel(int(step < pixels ? step : 0), window.OH, window.OW);
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int64_t index = int64_t(block) * Tile::BK + row(r);
      at[r] = pixel(int(index < pixels ? index : 0), window.OH, window.OW);
    }
  }

  __device__ static int chunk() { return threadIdx.x % A::kChunks; }
  __device__ static int row(int r) { return threadIdx.x / A::kChunks + r * kRows; }
  __device__ int steps() const {
    const int blocks = int(ceil_div(pixels, Tile::BK));
    return block < blocks ? int(ceil_div(blocks - block, p.splits)) : 0;
  }

  __device__ __forceinline__ void start(uint32_t stage) {
    const Window& window = s.window;
    const T* from = static_cast<const T*>(p.x) + place.group * s.CG;
    const int C = s.G * s.CG;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int64_t index = int64_t(block) * Tile::BK + row(r);
      const bool known = index < pixels;
      if constexpr (COPIED) {
        const bool live = known && within(filter, s.FG);
        const int64_t offset = (index * s.G + place.group) * s.FG + filter;
        copy_async(stage + A::at(row(r), chunk()), static_cast<const T*>(p.u) + (live ? offset : 0), live);
      } else {
        u[r].fetch(p, known ? index : -1, place.group, filter);
      }
      if (COPIED || !place.flat) {
        const int64_t site = input_site(window, at[r], i, j);
        const bool sees = known && site >= 0 && within(column, s.CG);
        copy_async(stage + A::kBytes + B::at(row(r), chunk()), from + (sees ? site * C + column : 0), sees);
      } else if constexpr (!COPIED) {
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

  __device__ __forceinline__ void finish(uint32_t stage) {
    if constexpr (!COPIED) {
      float t = 0;  // dgrad's
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        shared_store(stage + A::at(row(r), chunk()), u[r].form(p, place.group, filter, t));
        if (place.flat) shared_store(stage + A::kBytes + B::at(row(r), chunk()), x[r]);
      }
    }
  }
};

template <typename Tile, bool COPIED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, COPIED>)
    implicit_gemm_wgrad_kernel(const Packed<ImplicitGemmWgrad> params) {
  const ImplicitGemmWgrad& p = params.p;
  const Shape& s = p.shape;
  const Place place = place_of<Tile>(s);
  const int width = s.CG / params.pack, height = s.FG / params.pack;  // of a group of a pack
  const bool leads = p.dbias != nullptr && place.column0 == 0 && place.tap == 0;
  Tile tile;
  Loader<Tile, COPIED> loader(p, place);
  if constexpr (Tile::kPacked) tile.mark_diagonal(params.pack, width, height);
  tile.multiply(loader, loader.steps(), leads);

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

template <typename T, bool TF32, bool LARGE, bool COPIED, Diagonal DIAGONAL = Diagonal::None>
cudaError_t start_wgrad(const ImplicitGemmWgrad& params, int pack, cudaStream_t stream) {
  using Tile = TileOf<T, TF32, LARGE, false, false, RowSum::Plain, DIAGONAL>;
  const Packed<ImplicitGemmWgrad> p(params, pack);
  const Shape& s = p.p.shape;
  const bool flat = s.CG % kVector<T> != 0;
  const int taps = s.window.KH * s.window.KW;
  const int64_t tiles_n = ceil_div(flat ? int64_t(taps) * s.CG : s.CG, Tile::BN);
  const dim3 grid(ceil_div(s.FG, Tile::BM) * tiles_n, flat ? s.G : s.G * taps, params.splits);
  return start(implicit_gemm_wgrad_kernel<Tile, COPIED>, grid, Tile::kThreads, Tile::kShared, p, stream);
}

template <typename T, bool TF32>
cudaError_t start_wgrad_of(const ImplicitGemmWgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  const bool copied = p.u != nullptr && s.CG % kVector<T> == 0 && s.FG % kVector<T> == 0;
  const int pack = p.u != nullptr ? groups_of_tile(s, sizeof(T)) : 1;
  if (pack > 1) return start_wgrad<T, TF32, false, true, Diagonal::C>(p, pack, stream);
  if constexpr (sizeof(T) == 2)
    if (copied && p.large) return start_wgrad<T, false, true, true>(p, 1, stream);
  return copied ? start_wgrad<T, TF32, false, true>(p, 1, stream)
                : start_wgrad<T, TF32, false, false>(p, 1, stream);
}

}  // namespace

cudaError_t implicit_gemm_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.FG) * s.CG == 0) return cudaSuccess;
  if (!is_output_of(p.dtype, p.out_dtype)) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 4)
      if (p.tf32) return start_wgrad_of<T, true>(p, stream);
    return start_wgrad_of<T, false>(p, stream);
  });
}

}  // namespace bcos::transform::cuda
