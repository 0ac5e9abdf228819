// Narrow groups that share a tile. Neighbouring groups are taken as one whose weights are zero outside of the
// group that a filter belongs to; what a group has of its own, its norm above all, is told apart at the end.
// A sum that is not finite is then formed again, over its own group alone.
#pragma once

#include "common/cuda/primitives.cuh"
#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

// A problem whose shape counts packs of so many groups as groups.
template <typename P>
P in_packs(P p, int pack) {
  p.shape.G /= pack;
  p.shape.CG *= pack;
  p.shape.FG *= pack;
  return p;
}

// The most neighbouring groups that fit a tile and divide G, 1 where none do: 128 bytes of channels and of
// filters of a pixel, in whole chunks of 16 bytes, and weights in pieces of 4 bytes at least.
inline int groups_of_tile(const Shape& s, int bytes) {
  if (s.CG == 0 || s.CG * bytes % 4 != 0) return 1;
  for (int pack = 128 / bytes / (s.CG > s.FG ? s.CG : s.FG); pack > 1; --pack)
    if (s.G % pack == 0 && pack * s.CG * bytes % 16 == 0 && pack * s.FG * bytes % 16 == 0) return pack;
  return 1;
}

// Which tiles a product takes. COPIED: its loader copies both operands in chunks of 16 bytes.
template <typename T_, bool TF32_, bool LARGE_, bool COPIED_, bool PACKED_>
struct Kind {
  using T = T_;
  static constexpr bool TF32 = TF32_, LARGE = LARGE_, COPIED = COPIED_, PACKED = PACKED_;
};

// f(kind, pack) for a product. `packs`: narrow groups may share a tile; copies(count): both operands are made
// of whole chunks of so many values.
template <typename P, typename Copies, typename F>
cudaError_t by_kind(const P& p, bool packs, Copies&& copies, F&& f) {
  return by_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto choose = [&](auto tf32) {
      const int pack = packs ? groups_of_tile(p.shape, sizeof(T)) : 1;
      const bool copied = copies(kVector<T>);
      if (pack > 1) return f(Kind<T, tf32, false, true, true>{}, pack);
      if constexpr (sizeof(T) == 2)
        if (copied && p.large) return f(Kind<T, false, true, true, false>{}, 1);
      return copied ? f(Kind<T, tf32, false, true, false>{}, 1) : f(Kind<T, tf32, false, false, false>{}, 1);
    };
    if constexpr (sizeof(T) == 4)
      if (p.tf32) return choose(std::true_type{});
    return choose(std::false_type{});
  });
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
