// y, and what a backward needs of it. A tile has all outputs, or 64 of them, for as many values of the patch
// as fit beside each other; it walks over the values and sums for each of its columns.
#include <cmath>

#include "dynamic_alignment/cuda/launch.h"
#include "dynamic_alignment/cuda/patch.cuh"
#include "dynamic_alignment/cuda/sweep.cuh"

namespace bcos::dynamic_alignment::cuda {
namespace {

template <typename Tile>
struct Layout {
  static constexpr int kRow = Tile::BN + 1;  // values of a row of totals: other banks for the next row
  using A = SumsOf<typename Tile::T>;
  static constexpr int kValue = sizeof(A);
  static constexpr int kTotals = kRing<Tile>, kTotal = Tile::BM * kRow * kValue;
  static constexpr int kPatches = kTotals + 2 * kTotal;

  int width, values;  // outputs of a tile, and the values of the patch that have them

  explicit Layout(const Shape& s) : width(s.O < Tile::BN ? s.O : Tile::BN), values(Tile::BN / width) {}

  size_t shared() const { return kPatches + 2 * size_t(values) * Tile::BM * kValue; }

  // Of the products with the patch, or of the terms of the norms.
  __device__ static uint32_t total(bool of_norm, int row, int column) {
    return kTotals + of_norm * kTotal + (row * kRow + column) * kValue;
  }
  // Value `of` of those that a part has, for row 0.
  __device__ uint32_t patch(int part, int of) const {
    return kPatches + (part % 2 * values + of) * Tile::BM * kValue;
  }
};

// `flush`: parts whose sums are added to the totals at once: sums of sums round less.
template <typename Tile, Norm KIND>
__global__ void __launch_bounds__(Tile::kThreads, 384 / Tile::kThreads)
    forward_kernel(const Forward<SumsOf<typename Tile::T>> p, const Layout<Tile> layout, int flush) {
  using T = typename Tile::T;
  using A = SumsOf<T>;
  constexpr int kValue = sizeof(A);
  const Shape& s = p.shape;
  const int width = layout.width, values = layout.values, pixels = s.pixels();
  const int tiles_o = int(ceil_div(s.O, width));
  const int pixel0 = blockIdx.x / tiles_o * Tile::BM, o0 = blockIdx.x % tiles_o * width;
  const int parts = int(ceil_div(s.patch(), values));

  const int seen_row = threadIdx.x % Tile::BM;
  const Patch patch(s, pixel0 + seen_row);
  const auto fetch = [&](int part) {
    for (int of = threadIdx.x / Tile::BM; of < values; of += Tile::kThreads / Tile::BM) {
      const int64_t at = patch.at(s, Value(s, part * values + of));
      shared_store(layout.patch(part, of) + seen_row * kValue,
                   at < 0 ? A(0) : widened(static_cast<const T*>(p.x)[at]));
    }
  };

  Tile tile;
  Loader<Tile> loader(
      s, p.h, p.weight, values * s.O,
      [&](int row) -> int64_t { return pixel0 + row < pixels ? pixel0 + row : -1; },
      [&](int column) -> int64_t {
        const int of = column / width, o = o0 + column % width;
        return of < values && o < s.O ? of * s.O + o : s.rows();
      });
  int value_of[Tile::NI][2];  // columns behind the last value see any: their weights are 0
#pragma unroll
  for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int of = (tile.column_of(j) + e) / width;
      value_of[j][e] = of < values ? of : values - 1;
    }

  A l[Tile::MI][Tile::NI][4] = {}, sums[Tile::MI][Tile::NI][4] = {};
  fetch(0);
  sweep(tile, loader, parts, [&](int part) {
    A u[Tile::MI][2];
#pragma unroll
    for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (values > 1 || j + e == 0)
              u[i][half] = shared_load<A>(layout.patch(part, value_of[j][e]) + tile.row_of(i, half) * kValue);
            const A w = tile.c[i][j][half * 2 + e];
            l[i][j][half * 2 + e] += u[i][half] * w;
            sums[i][j][half * 2 + e] += norm_term<KIND>(w);
          }
      }
    if (part + 1 < parts) fetch(part + 1);
    if ((part + 1) % flush != 0 && part + 1 < parts) return;
#pragma unroll
    for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
      for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = tile.row_of(i, e / 2), column = tile.column_of(j) + e % 2;
          const uint32_t of_l = layout.total(false, row, column), of_norm = layout.total(true, row, column);
          const bool begins = part < flush;
          shared_store(of_l, l[i][j][e] + (begins ? A(0) : shared_load<A>(of_l)));
          shared_store(of_norm, sums[i][j][e] + (begins ? A(0) : shared_load<A>(of_norm)));
          l[i][j][e] = sums[i][j][e] = 0;
        }
  });

  for (int at = threadIdx.x; at < Tile::BM * width; at += Tile::kThreads) {
    const int row = at % Tile::BM, o = o0 + at / Tile::BM, pixel = pixel0 + row;
    if (!within(pixel, pixels) || !within(o, s.O)) continue;
    A product = 0, sum = 0;
    for (int column = at / Tile::BM; column < values * width; column += width) {
      product += shared_load<A>(layout.total(false, row, column));
      sum += shared_load<A>(layout.total(true, row, column));
    }
    const A norm = norm_of(KIND, sum);
    const int64_t kept = int64_t(o) * pixels + pixel;
    p.norm[kept] = norm;
    if (p.l != nullptr) p.l[kept] = product;
    static_cast<T*>(p.y)[(int64_t(pixel / s.plane()) * s.O + o) * s.plane() + pixel % s.plane()] =
        rounded<T>(scale(KIND, norm) * product);
  }
}

}  // namespace

template <typename A>
cudaError_t forward(const Forward<A>& p, cudaStream_t stream) {
  return by_operands<A>(p.dtype, p.tf32, [&](auto type, auto tf32) {
    using Tile = WeightTile<typename decltype(type)::type, tf32>;
    return by_norm(p.kind, [&](auto kind) {
      const Layout<Tile> layout(p.shape);
      const int64_t parts = ceil_div(p.shape.patch(), layout.values);
      const int flush = int(std::sqrt(double(parts))) + 1;
      const dim3 grid(ceil_div(p.shape.pixels(), Tile::BM) * ceil_div(p.shape.O, layout.width));
      return start(forward_kernel<Tile, kind>, grid, Tile::kThreads, layout.shared(), stream, p, layout,
                   flush);
    });
  });
}

BCOS_FOR_BOTH_SUMS(forward, Forward);

}  // namespace bcos::dynamic_alignment::cuda
