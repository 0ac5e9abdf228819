// The input's gradient as an implicit matrix product: rows of C are input pixels, columns channels of a
// group, k filters of all taps. The norm's own term covers the same taps and is added on the way.
#include "cuda/launch.h"
#include "cuda/tile.cuh"
#include "cuda/upstream.cuh"
#include "cuda/window.cuh"

namespace bcos::cuda {
namespace {

// Fetches u and w. COPIED: u is given, and both go to shared memory in chunks of 16 bytes.
template <typename Tile, bool COPIED>
struct Loader {
  using T = typename Tile::T;
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int V = kVector<T>, kCopies = Tile::kCopies, kRows = Tile::kThreads / B::kChunks;

  const ImplicitGemmDgrad& p;
  const Shape& s;
  const T* w;  // of the group
  int group, channel;
  Pixel at[kCopies];
  bool known[kCopies];
  int64_t site[kCopies];  // the output that reads the pixel through the tap, or -1
  int tap = 0, f0 = 0;    // of the next step
  int filter = 0;         // of the chunk in flight
  UpstreamChunk<T> u[COPIED ? 1 : kCopies];
  Vector<T> b[COPIED ? 1 : kCopies];
  float t[kCopies] = {};

  __device__ Loader(const ImplicitGemmDgrad& params, int row0, int channel0) : p(params), s(params.shape) {
    const Window& window = s.window;
    group = blockIdx.y;
    w = static_cast<const T*>(p.w) + int64_t(group) * s.FG * window.KH * window.KW * s.CG;
    channel = channel0 + int(threadIdx.x % B::kChunks) * V;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const int pixels = s.N * window.H * window.W, index = row0 + row(r);
      known[r] = within(index, pixels);
      at[r] = pixel(known[r] ? index : 0, window.H, window.W);
    }
    enter_tap();
  }

  __device__ static int row(int r) { return threadIdx.x / 4 + r * (Tile::kThreads / 4); }
  __device__ static int chunk() { return threadIdx.x % 4; }
  __device__ int steps() const { return s.window.KH * s.window.KW * int(ceil_div(s.FG, Tile::BK)); }

  __device__ __forceinline__ void enter_tap() {
#pragma unroll
    for (int r = 0; r < kCopies; ++r) site[r] = known[r] ? output_site(s.window, at[r], tap) : -1;
  }

  __device__ __forceinline__ void start(uint32_t stage) {
    filter = f0 + chunk() * V;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      if constexpr (COPIED) {
        const bool reads = site[r] >= 0 && within(filter, s.FG);
        const int64_t from = (site[r] * s.G + group) * s.FG + filter;
        copy_async(stage + A::at(row(r), chunk()), static_cast<const T*>(p.u) + (reads ? from : 0), reads);
      } else {
        u[r].fetch(p, site[r], group, filter);
      }
      const int k = threadIdx.x / B::kChunks + r * kRows, f = f0 + k;
      const int64_t from = (int64_t(f) * (s.window.KH * s.window.KW) + tap) * s.CG + channel;
      if (COPIED || s.CG % V == 0) {
        const bool live = within(f, s.FG) && within(channel, s.CG);
        copy_async(stage + A::kBytes + B::at(k, threadIdx.x % B::kChunks), w + (live ? from : 0), live);
      } else if constexpr (!COPIED) {
#pragma unroll
        for (int e = 0; e < V; ++e)
          b[r].v[e] = within(f, s.FG) && within(channel + e, s.CG) ? w[from + e] : rounded<T>(0);
      }
    }
    f0 += Tile::BK;
    if (f0 >= s.FG) {
      f0 = 0;
      ++tap;
      enter_tap();
    }
  }

  __device__ __forceinline__ void finish(uint32_t stage) {
    if constexpr (!COPIED) {
#pragma unroll
      for (int r = 0; r < kCopies; ++r) {
        shared_store(stage + A::at(row(r), chunk()), u[r].form(p, group, filter, t[r]));
        if (s.CG % V != 0) {
          const int k = threadIdx.x / B::kChunks + r * kRows;
          shared_store(stage + A::kBytes + B::at(k, threadIdx.x % B::kChunks), b[r]);
        }
      }
    }
  }
};

template <typename Tile, bool COPIED>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, COPIED>)
    implicit_gemm_dgrad_kernel(const ImplicitGemmDgrad p) {
  using T = typename Tile::T;
  constexpr int V = kVector<T>;
  const Shape& s = p.shape;
  const Window& window = s.window;
  const int tiles_n = int(ceil_div(s.CG, Tile::BN)), pixels = s.N * window.H * window.W, group = blockIdx.y;
  const int row0 = blockIdx.x / tiles_n * Tile::BM, channel0 = blockIdx.x % tiles_n * Tile::BN;
  const bool with_t = !p.detached && p.formula.power != Power::One;
  Tile tile;
  Loader<Tile, COPIED> loader(p, row0, channel0);
  tile.multiply(loader, loader.steps(), false);

  if (with_t && p.u == nullptr) {
#pragma unroll
    for (int r = 0; r < Tile::kCopies; ++r) {
      const float t = lane_sum(loader.t[r], 4);
      if (threadIdx.x % 4 == 0) shared_store(Tile::kSums + loader.row(r) * 4, t);
    }
  } else if (with_t) {
    for (int row = threadIdx.x; row < Tile::BM; row += Tile::kThreads)
      if (within(row0 + row, pixels)) {
        const Pixel at = pixel(row0 + row, window.H, window.W);
        shared_store(Tile::kSums + row * 4, pooled_sum(p.t, window, at, group, s.G));
      }
  }
  tile.share_product();
  const bool vector = s.CG % V == 0;
  for (int at = threadIdx.x; at < Tile::BM * (Tile::BN / V); at += Tile::kThreads) {
    const int row = at / (Tile::BN / V), column = at % (Tile::BN / V) * V, channel = channel0 + column;
    if (!within(row0 + row, pixels) || !within(channel, s.CG)) continue;
    const int64_t to = (int64_t(row0 + row) * s.G + group) * s.CG + channel;
    const float t = with_t ? Tile::row_value(row) : 0.f;
    const T* x = static_cast<const T*>(p.x);
    T* dx = static_cast<T*>(p.dx);
    float values[V], old[V] = {};
    if (vector && with_t) load(old, x, to, true);
#pragma unroll
    for (int e = 0; e < V; ++e) values[e] = Tile::product(row, column + e) + old[e] * t;
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

template <typename T, bool TF32, bool LARGE, bool COPIED>
cudaError_t start_dgrad(const ImplicitGemmDgrad& p, cudaStream_t stream) {
  using Tile = TileOf<T, TF32, LARGE, true, false, RowSum::None>;
  const Shape& s = p.shape;
  const int64_t tiles_m = ceil_div(int64_t(s.N) * s.window.H * s.window.W, Tile::BM);
  const dim3 grid(tiles_m * ceil_div(s.CG, Tile::BN), s.G);
  return start(implicit_gemm_dgrad_kernel<Tile, COPIED>, grid, Tile::kThreads, Tile::kShared, p, stream);
}

}  // namespace

cudaError_t implicit_gemm_dgrad(const ImplicitGemmDgrad& p, cudaStream_t stream) {
  const Shape& s = p.shape;
  if (int64_t(s.N) * s.window.H * s.window.W * s.CG == 0) return cudaSuccess;
  if (p.out_dtype != p.dtype && p.out_dtype != Dtype::Float32) return cudaErrorInvalidValue;
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool copied = p.u != nullptr && s.CG % kVector<T> == 0 && s.FG % kVector<T> == 0;
    if constexpr (sizeof(T) == 2) {
      if (copied && p.large) return start_dgrad<T, false, true, true>(p, stream);
    } else if (p.tf32) {
      return copied ? start_dgrad<T, true, false, true>(p, stream)
                    : start_dgrad<T, true, false, false>(p, stream);
    }
    return copied ? start_dgrad<T, false, false, true>(p, stream)
                  : start_dgrad<T, false, false, false>(p, stream);
  });
}

}  // namespace bcos::cuda
