// Narrow groups that share a tile. Neighbouring groups are taken as one whose weights are zero outside of the
// group that a filter belongs to; what a group has of its own, its norm above all, is told apart at the end.
// A sum that is not finite is then formed again, over its own group alone.
#pragma once

#include "common/cuda/primitives.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

// A problem whose shape counts packs of groups as groups.
template <typename P>
struct Packed {
  P p;
  int pack;  // groups of a pack

  Packed(const P& params, int groups) : p(params), pack(groups) {
    p.shape.G /= pack;
    p.shape.CG *= pack;
    p.shape.FG *= pack;
  }
};

// The most neighbouring groups that fit a tile and divide G, 1 where none do: 128 bytes of channels and of
// filters of a pixel, in whole chunks of 16 bytes, and weights in pieces of 4 bytes at least.
inline int groups_of_tile(const Shape& s, int bytes) {
  if (s.CG == 0 || s.CG * bytes % 4 != 0) return 1;
  for (int pack = 128 / bytes / (s.CG > s.FG ? s.CG : s.FG); pack > 1; --pack)
    if (s.G % pack == 0 && pack * s.CG * bytes % 16 == 0 && pack * s.FG * bytes % 16 == 0) return pack;
  return 1;
}

// The most bytes of a copy that never holds channels of two groups.
__device__ __forceinline__ int piece_of(int bytes) {
  const int power = bytes & -bytes;
  return power < 16 ? power : 16;
}

// A chunk of the weights of a pack, to a shared address: the piece at its value e is copied from source(e),
// or is 0 where that is null.
template <typename T, typename F>
__device__ __forceinline__ void copy_pieces(uint32_t to, int piece, F&& source) {
  const auto copy = [&](auto bytes) {
    constexpr int BYTES = decltype(bytes)::value;
#pragma unroll
    for (int i = 0; i < 16; i += BYTES) {
      const T* from = source(i / int(sizeof(T)));
      copy_async<BYTES>(to + i, from, from != nullptr);
    }
  };
  if (piece == 16)
    copy(std::integral_constant<int, 16>{});
  else if (piece == 8)
    copy(std::integral_constant<int, 8>{});
  else
    copy(std::integral_constant<int, 4>{});
}

// The groups within a pack that neighbouring channels or filters belong to, asked for in order.
struct Neighbours {
  int width, group, end;  // of a group; the present one, and the first value past it
  __device__ Neighbours(int first, int of) : width(of), group(first / of), end((group + 1) * of) {}
  __device__ int group_of(int value) {
    if (value >= end) {
      ++group;
      end += width;
    }
    return group;
  }
};

}  // namespace bcos::transform::cuda
