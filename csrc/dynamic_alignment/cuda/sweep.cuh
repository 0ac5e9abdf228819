// Dynamic weights of a tile of pixels: products of h with rows of the weight, of one part after the other.
#pragma once

#include "common/cuda/tile.cuh"
#include "dynamic_alignment/cuda/params.h"

namespace bcos::dynamic_alignment::cuda {

// 64 pixels x 64 columns; T is the type of h and of the weight.
template <typename T, bool TF32>
using WeightTile = TileOf<T, TF32, false, true, true, RowSum::None, Diagonal::None>;

// The bytes of shared memory that a sweep takes: a ring of units, as a part may end with each of them.
template <typename Tile>
constexpr int kRing = Tile::STAGES * Tile::kUnit;

// Fetches rows of h, which stay, and rows of the weight, which each part has others of.
template <typename Tile>
struct Loader {
  using T = typename Tile::T;
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int V = kVector<T>, kCopies = Tile::kCopies, kRows = Tile::kThreads / A::kChunks;

  const T *h, *weight;
  int64_t pixel[kCopies], row[kCopies];  // negative, or at least `rows`, where there is none
  int64_t rows;
  int depth, step;  // of k; rows that a column takes from part to part
  int k;            // of the next unit
  uint32_t to;      // the shared address of the thread's first chunk of a unit

  // Row i of the tile is pixel_of(i); column j is row_of(j) of the weight in the first part.
  template <typename PixelOf, typename RowOf>
  __device__ __forceinline__ Loader(const Shape& s, const void* all_h, const void* all_weight, int step,
                                    PixelOf pixel_of, RowOf row_of)
      : h(static_cast<const T*>(all_h)),
        weight(static_cast<const T*>(all_weight)),
        rows(s.rows()),
        depth(s.K),
        step(step),
        k(threadIdx.x % A::kChunks * V),
        to(kept(shared_address(A::at(line(0), threadIdx.x % A::kChunks)))) {
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      pixel[r] = pixel_of(line(r));
      row[r] = row_of(line(r));
    }
  }

  __device__ static int line(int r) { return threadIdx.x / A::kChunks + r * kRows; }
  __device__ int units() const { return int(ceil_div(depth, Tile::BK)); }  // of a part

  __device__ __forceinline__ void start(uint32_t unit) {
#pragma unroll
    for (int r = 0; r < kCopies; ++r) {
      const bool live = within(k, depth), of_h = live && pixel[r] >= 0, of_weight = live && row[r] < rows;
      const uint32_t chunk = to + unit + r * (kRows * A::kChunks * 16);
      copy_async(chunk, h + (of_h ? pixel[r] * depth + k : 0), of_h);
      copy_async(chunk + A::kBytes, weight + (of_weight ? row[r] * depth + k : 0), of_weight);
    }
    k += Tile::BK;
    if (k < units() * Tile::BK) return;
    k -= units() * Tile::BK;
#pragma unroll
    for (int r = 0; r < kCopies; ++r) row[r] += step;
  }
};

// Calls use(part) with the dynamic weights of each part in `tile.c`. Between two calls lies a barrier, and so
// does one before the first.
template <typename Tile, typename Use>
__device__ __forceinline__ void sweep(Tile& tile, Loader<Tile>& loader, int parts, Use use) {
  constexpr int STAGES = Tile::STAGES;
  const int of_part = loader.units(), units = parts * of_part;
  int part = 0, left = of_part;
  tile.find_lanes();
  for (int unit = 1 - STAGES; unit < units; ++unit) {  // the ring is filled first
    wait_for_copies<STAGES - 2>();
    barrier();
    const int next = unit + STAGES - 1;
    if (next < units) loader.start(stage_of<STAGES>(next) * Tile::kUnit);
    commit_copies();
    if (unit < 0) continue;
    tile.multiply_unit(unsigned(unit) % STAGES * Tile::kUnit, false, 0);
    if (--left > 0) continue;
    use(part);
#pragma unroll
    for (int i = 0; i < Tile::MI; ++i)
#pragma unroll
      for (int j = 0; j < Tile::NI; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) tile.c[i][j][e] = 0;
    ++part;
    left = of_part;
  }
  wait_for_copies<0>();
  barrier();
}

// f(type, tf32) with the type of the operands, whose products are added up in A, and whether they are rounded
// to tf32.
template <typename A, typename F>
cudaError_t by_operands(Dtype dtype, bool tf32, F&& f) {
  return by_dtype<A>(dtype, [&](auto type) {
    if constexpr (sizeof(typename decltype(type)::type) == 4)
      if (tf32) return f(type, std::true_type{});
    return f(type, std::false_type{});
  });
}

// f of the kind of norm as a type.
template <typename F>
cudaError_t by_norm(Norm kind, F&& f) {
  switch (kind) {
    case Norm::Squash:
      return f(std::integral_constant<Norm, Norm::Squash>{});
    case Norm::L1:
      return f(std::integral_constant<Norm, Norm::L1>{});
    case Norm::L2:
      return f(std::integral_constant<Norm, Norm::L2>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace bcos::dynamic_alignment::cuda
