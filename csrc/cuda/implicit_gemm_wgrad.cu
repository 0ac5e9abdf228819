// The weight's gradient as an implicit matrix product: rows of C are filters of a group, columns channels of
// a tap, k output pixels. Shares of the pixels are summed apart and added afterwards, alike in every run.
#include "cuda/launch.h"
#include "cuda/tile.cuh"
#include "cuda/upstream.cuh"
#include "cuda/window.cuh"

namespace bcos::cuda {
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
  int pixels, block, filter, column;
  UpstreamChunk<T> u[COPIED ? 1 : kCopies];
  Vector<T> x[COPIED ? 1 : kCopies];

  __device__ Loader(const ImplicitGemmWgrad& params, const Place& where)
      : p(params), s(params.shape), place(where) {
    pixels = s.N * s.window.OH * s.window.OW;
    block = blockIdx.z;
    filter = place.filter0 + chunk() * V;
    column = place.column0 + chunk() * V;
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
      const Pixel at = pixel(known ? int(index) : 0, window.OH, window.OW);
      if constexpr (COPIED) {
        const bool live = known && within(filter, s.FG);
        const int64_t offset = (index * s.G + place.group) * s.FG + filter;
        copy_async(stage + A::at(row(r), chunk()), static_cast<const T*>(p.u) + (live ? offset : 0), live);
      } else {
        u[r].fetch(p, known ? index : -1, place.group, filter);
      }
      if (COPIED || !place.flat) {
        const int64_t site = input_site(window, at, place.tap / window.KW, place.tap % window.KW);
        const bool sees = known && site >= 0 && within(column, s.CG);
        copy_async(stage + A::kBytes + B::at(row(r), chunk()), from + (sees ? site * C + column : 0), sees);
      } else if constexpr (!COPIED) {
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const int tap = (column + e) / s.CG;
          const int64_t site = input_site(window, at, tap / window.KW, tap % window.KW);
          const bool sees = known && site >= 0 && within(column + e, place.columns);
          x[r].v[e] = sees ? from[site * C + (column + e) % s.CG] : rounded<T>(0);
        }
      }
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
    implicit_gemm_wgrad_kernel(const ImplicitGemmWgrad p) {
  const Shape& s = p.shape;
  const Place place = place_of<Tile>(s);
  const bool leads = p.dbias != nullptr && place.column0 == 0 && place.tap == 0;
  Tile tile;
  Loader<Tile, COPIED> loader(p, place);
  tile.multiply(loader, loader.steps(), leads);

  const int64_t K = int64_t(s.window.KH) * s.window.KW * s.CG, filters = int64_t(s.G) * s.FG;
  const int64_t first = blockIdx.z * filters + place.group * s.FG;
#pragma unroll
  for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int f = place.filter0 + tile.row_of(i, e / 2),
                  column = place.column0 + tile.column_of(j) + e % 2;
        if (within(f, s.FG) && within(column, place.columns))
          p.dw[(first + f) * K + place.tap * s.CG + column] = tile.c[i][j][e];
      }
  if (!leads) return;
  tile.share_sums();
  for (int row = threadIdx.x; row < Tile::BM; row += Tile::kThreads)
    if (within(place.filter0 + row, s.FG)) p.dbias[first + place.filter0 + row] = Tile::row_value(row);
}

template <typename T, bool TF32, bool LARGE, bool COPIED>
cudaError_t start_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream) {
  using Tile = TileOf<T, TF32, LARGE, false, false, RowSum::Plain>;
  const Shape& s = p.shape;
  const bool flat = s.CG % kVector<T> != 0;
  const int taps = s.window.KH * s.window.KW;
  const int64_t tiles_n = ceil_div(flat ? int64_t(taps) * s.CG : s.CG, Tile::BN);
  const dim3 grid(ceil_div(s.FG, Tile::BM) * tiles_n, flat ? s.G : s.G * taps, p.splits);
  return start(implicit_gemm_wgrad_kernel<Tile, COPIED>, grid, Tile::kThreads, Tile::kShared, p, stream);
}

}  // namespace

cudaError_t implicit_gemm_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.FG) * s.CG == 0) return cudaSuccess;
  if (p.out_dtype != p.dtype && p.out_dtype != Dtype::Float32) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool copied = p.u != nullptr && s.CG % kVector<T> == 0 && s.FG % kVector<T> == 0;
    if constexpr (sizeof(T) == 2) {
      if (copied && p.large) return start_wgrad<T, false, true, true>(p, stream);
    } else if (p.tf32) {
      return copied ? start_wgrad<T, true, false, true>(p, stream)
                    : start_wgrad<T, true, false, false>(p, stream);
    }
    return copied ? start_wgrad<T, false, false, true>(p, stream)
                  : start_wgrad<T, false, false, false>(p, stream);
  });
}

}  // namespace bcos::cuda
