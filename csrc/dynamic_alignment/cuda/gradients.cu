// What the gradient at y comes to at the patches and at the dynamic weights.
#include "dynamic_alignment/cuda/launch.h"
#include "dynamic_alignment/cuda/patch.cuh"
#include "dynamic_alignment/cuda/sweep.cuh"

namespace bcos::dynamic_alignment::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) upstream_kernel(const Upstream<SumsOf<T>> p) {
  using A = SumsOf<T>;
  const Shape& s = p.shape;
  const int site = int(blockIdx.x / s.O) * kThreads + threadIdx.x, o = blockIdx.x % s.O;
  if (!within(site, p.sites)) return;
  const int64_t kept = int64_t(o) * s.pixels() + site % s.pixels();
  const int64_t at = (int64_t(site / s.plane()) * s.O + o) * s.plane() + site % s.plane();
  const A norm = p.norm[kept], of_u = widened(static_cast<const T*>(p.grad)[at]) * scale(p.kind, norm);
  p.of_u[int64_t(o) * p.sites + site] = of_u;
  if (p.of_w != nullptr) p.of_w[kept] = of_u * p.l[kept] * slope(p.kind, norm);
}

// Columns are values of the patch; a part is an output.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, true>)
    patch_gradient_kernel(const PatchGradient<SumsOf<typename Tile::T>> p) {
  using A = SumsOf<typename Tile::T>;
  const Shape& s = p.shape;
  const int patch = s.patch(), tiles_p = int(ceil_div(patch, Tile::BN));
  const int site0 = blockIdx.x / tiles_p * Tile::BM, p0 = blockIdx.x % tiles_p * Tile::BN;
  Tile tile;
  Loader<Tile> loader(
      s, p.h, p.weight, 1,
      [&](int row) -> int64_t { return site0 + row < p.sites ? (site0 + row) % s.pixels() : -1; },
      [&](int column) -> int64_t { return p0 + column < patch ? (p0 + column) * s.O : s.rows(); });
  A du[Tile::MI][Tile::NI][4] = {};
  sweep(tile, loader, s.O, [&](int o) {
#pragma unroll
    for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int site = site0 + tile.row_of(i, half);
        const A of_u = within(site, p.sites) ? p.of_u[int64_t(o) * p.sites + site] : A(0);
#pragma unroll
        for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) du[i][j][half * 2 + e] += of_u * tile.c[i][j][half * 2 + e];
      }
  });
#pragma unroll
  for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int site = site0 + tile.row_of(i, e / 2), value = p0 + tile.column_of(j) + e % 2;
        if (!within(site, p.sites) || !within(value, patch)) continue;
        p.du[(int64_t(site / s.plane()) * patch + value) * s.plane() + site % s.plane()] = du[i][j][e];
      }
}

// Columns are rows of the weight, of which there is one part.
template <typename Tile, Norm KIND>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Tile, true>)
    weight_gradient_kernel(const WeightGradient<SumsOf<typename Tile::T>> p) {
  using A = SumsOf<typename Tile::T>;
  const Shape& s = p.shape;
  const int tiles_n = int(ceil_div(p.stride, Tile::BN)), rows = s.rows();
  const int pixel0 = blockIdx.x / tiles_n * Tile::BM, row0 = blockIdx.x % tiles_n * Tile::BN;
  Tile tile;
  Loader<Tile> loader(
      s, p.h, p.weight, 0,
      [&](int row) -> int64_t { return pixel0 + row < p.count ? p.first + pixel0 + row : -1; },
      [&](int column) -> int64_t { return row0 + column; });
  sweep(tile, loader, 1, [&](int) {
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j) {
      const int column = row0 + tile.column_of(j);
      if (!within(column, p.stride)) continue;
      const Value values[2] = {Value(s, column / s.O), Value(s, (column + 1) / s.O)};
      const int outputs[2] = {column % s.O, (column + 1) % s.O};
#pragma unroll
      for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = pixel0 + tile.row_of(i, half), pixel = p.first + place;
          if (!within(place, p.count)) continue;
          const Patch patch(s, pixel);
          Vector<A, 2> dw{};
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (!within(column + e, rows)) continue;
            const int64_t at = patch.at(s, values[e]), kept = int64_t(outputs[e]) * s.pixels() + pixel;
            const A u = at < 0 ? A(0) : load_as<A>(p.x, p.dtype, at);
            dw.v[e] = p.of_u[kept] * u + p.of_w[kept] * direction<KIND>(tile.c[i][j][half * 2 + e]);
          }
          *reinterpret_cast<Vector<A, 2>*>(p.dw + int64_t(place) * p.stride + column) = dw;
        }
    }
  });
}

}  // namespace

template <typename A>
cudaError_t upstream(const Upstream<A>& p, cudaStream_t stream) {
  return by_dtype<A>(p.dtype, [&](auto type) {
    const dim3 grid(ceil_div(p.sites, kThreads) * p.shape.O);
    return start(upstream_kernel<typename decltype(type)::type>, grid, kThreads, 0, stream, p);
  });
}

template <typename A>
cudaError_t patch_gradient(const PatchGradient<A>& p, cudaStream_t stream) {
  return by_operands<A>(p.dtype, p.tf32, [&](auto type, auto tf32) {
    using Tile = WeightTile<typename decltype(type)::type, tf32>;
    const dim3 grid(ceil_div(p.sites, Tile::BM) * ceil_div(p.shape.patch(), Tile::BN));
    return start(patch_gradient_kernel<Tile>, grid, Tile::kThreads, kRing<Tile>, stream, p);
  });
}

template <typename A>
cudaError_t weight_gradient(const WeightGradient<A>& p, cudaStream_t stream) {
  if (!is_known<A>(p.dtype)) return cudaErrorInvalidValue;
  return by_operands<A>(sizeof(A) == 8 ? Dtype::Float64 : Dtype::Float32, p.tf32, [&](auto type, auto tf32) {
    using Tile = WeightTile<typename decltype(type)::type, tf32>;
    return by_norm(p.kind, [&](auto kind) {
      const dim3 grid(ceil_div(p.count, Tile::BM) * ceil_div(p.stride, Tile::BN));
      return start(weight_gradient_kernel<Tile, kind>, grid, Tile::kThreads, kRing<Tile>, stream, p);
    });
  });
}

BCOS_FOR_BOTH_SUMS(upstream, Upstream);
BCOS_FOR_BOTH_SUMS(patch_gradient, PatchGradient);
BCOS_FOR_BOTH_SUMS(weight_gradient, WeightGradient);

}  // namespace bcos::dynamic_alignment::cuda
