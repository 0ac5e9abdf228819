// The operands of a block's product in shared memory.
#pragma once

#include "common/cuda/primitives.cuh"

namespace bcos::cuda {

// Four neighbouring values of fp64.
struct Four {
  double x, y, z, w;
};

// Where the values of an operand lie within its part of a unit. A unit holds rows of chunks of 16 bytes,
// which are permuted so that a warp's accesses take all banks of shared memory: those to one chunk of eight
// rows (two chunks of four rows for fp32 that is not K_MAJOR), and those to eight chunks of one row. With
// K_MAJOR a row belongs to an index of C and runs along k; without it a row belongs to a k and runs along the
// indices of C.
template <typename T, int SIZE, bool K_MAJOR>
struct Operand {
  static constexpr int kDepth = 64 / int(sizeof(T));               // values of k in a unit
  static constexpr int kChunks = K_MAJOR ? 4 : SIZE / kVector<T>;  // of a row
  static constexpr int kBytes = SIZE * 64;

  __device__ static __forceinline__ uint32_t at(int row, int chunk) {
    const int permuted = chunk ^ (K_MAJOR ? row >> 1 & 3 : sizeof(T) == 2 ? row & 7 : (row & 3) * 2);
    return uint32_t(row * kChunks + permuted) * 16;
  }
  // One value (16-bit types are read as matrices).
  __device__ static __forceinline__ SumsOf<T> value(uint32_t base, int index, int k) {
    constexpr int V = 16 / int(sizeof(SumsOf<T>));
    const int row = K_MAJOR ? index : k, column = K_MAJOR ? k : index;
    return shared_load<SumsOf<T>>(base + at(row, column / V) + column % V * int(sizeof(SumsOf<T>)));
  }
  // Values k to k + 3 of an index, k a multiple of 4.
  __device__ static __forceinline__ auto four(uint32_t base, int index, int k) {
    using Values = std::conditional_t<std::is_same_v<T, double>, Four, float4>;
    if constexpr (K_MAJOR && sizeof(T) == 4)
      return shared_load<float4>(base + at(index, k / 4));
    else
      return Values{value(base, index, k), value(base, index, k + 1), value(base, index, k + 2),
                    value(base, index, k + 3)};
  }
};

}  // namespace bcos::cuda
