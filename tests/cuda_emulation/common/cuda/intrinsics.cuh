// Stands in for csrc/common/cuda/intrinsics.cuh (it comes first in the include path): the same functions on
// the emulator.
//
// The environment variable BCOS_PLANT=<n> breaks one of them, to show that the checks find it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "emulator.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline

// For the arithmetic of matrices, which touches nothing of a kernel's: compiled to run fast, without the
// checks that the kernels are compiled with.
#define EMULATION_PLAIN __attribute__((optimize("O3"), no_sanitize("address", "undefined")))

inline float __uint_as_float(uint32_t word) {
  float v;
  std::memcpy(&v, &word, sizeof(v));
  return v;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t word;
  std::memcpy(&word, &v, sizeof(v));
  return word;
}

namespace bcos::cuda {

enum Plant {
  kNone,
  kMissingBarrier,      // no barrier does anything
  kWaitOffByOne,        // one more group of copies than asked for stays in flight
  kMissingRowGuard,     // copies are made where there is nothing to copy
  kMissingColumnGuard,  // an index equal to its limit passes
  kWrongStage,          // a step takes its neighbour's slot of the ring
  kUnreducedLane,       // sums leave the neighbouring lane out
  kTransposedFragment,  // matrices are loaded the other way round
  kWholeChunk,          // a piece of a chunk is copied as if it were all of it
  kMissingBlock,        // of several blocks the last is not started
};
inline const Plant planted = Plant(std::getenv("BCOS_PLANT") ? std::atoi(std::getenv("BCOS_PLANT")) : kNone);

template <typename To, typename From>
EMULATION_PLAIN To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &v, sizeof(out));
  return out;
}

struct Tf32 {};

template <typename A>
A shuffle_xor(A value, int mask) {
  constexpr int WORDS = sizeof(A) / 4;
  uint32_t words[WORDS];
  std::memcpy(words, &value, sizeof(A));
  const auto exchange = [mask](emulation::Warp& w) {
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < WORDS; ++i)
        w.out[lane][i] = planted == kUnreducedLane && mask == 1 ? 0 : w.in[lane ^ mask][i];
  };
  std::memcpy(&value, emulation::collective(words, WORDS, exchange), sizeof(A));
  return value;
}

inline void barrier() {
  if (planted != kMissingBarrier) emulation::block_barrier();
}

inline bool within(int index, int limit) {
  return index >= 0 && (planted == kMissingColumnGuard ? index <= limit : index < limit);
}

template <int STAGES>
int stage_of(int step) {
  return unsigned(step + (planted == kWrongStage && step >= STAGES)) % STAGES;
}

inline uint32_t shared_address(uint32_t at) {
  return at;
}
template <typename T>
T kept(T value) {
  return value;
}

template <typename V>
V shared_load(uint32_t at) {
  emulation::note_read(at, sizeof(V));
  V value;
  std::memcpy(&value, &emulation::block.shared[at], sizeof(V));
  return value;
}

template <typename V>
void shared_store(uint32_t at, V value) {
  emulation::note_write(at, sizeof(V));
  std::memcpy(&emulation::block.shared[at], &value, sizeof(V));
}

template <int BYTES = 16>
void copy_async(uint32_t at, const void* from, bool inside) {
  inside |= planted == kMissingRowGuard;
  const uint32_t bytes = planted == kWholeChunk ? 16 : BYTES;
  if (inside && reinterpret_cast<uintptr_t>(from) % bytes != 0)
    emulation::fail("misaligned source of a copy", at);
  emulation::note_write(at, bytes);
  emulation::threads[emulation::current].open.push_back({at, bytes, from, inside});
}

inline void commit_copies() {
  auto& thread = emulation::threads[emulation::current];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

template <int PENDING>
void wait_for_copies() {
  emulation::land(PENDING + (planted == kWaitOffByOne));
}

template <bool TRANSPOSED>
void load_matrices(uint32_t (&r)[4], uint32_t at) {
  emulation::note_read(at, 16);
  const auto* out = emulation::collective(&at, 1, [](emulation::Warp& w) {
    const bool transposed = TRANSPOSED != (planted == kTransposedFragment);
    const auto half = [&w](int matrix, int row, int column) {
      uint16_t v;
      std::memcpy(&v, &emulation::block.shared[w.in[matrix * 8 + row][0] + column * 2], 2);
      return v;
    };
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int a = lane / 4, b = lane % 4 * 2;
        const uint32_t low = transposed ? half(i, b, a) : half(i, a, b);
        const uint32_t high = transposed ? half(i, b + 1, a) : half(i, a, b + 1);
        w.out[lane][i] = low | high << 16;
      }
  });
  std::memcpy(r, out, 16);
}

// Rounded to nearest, ties away from zero.
inline uint32_t to_tf32(float value) {
  const uint32_t u = bits<uint32_t>(value);
  return value != value ? u : (u + 0x1000) & ~0x1fffu;
}

// Element `part` of a register of a matrix operand: exactly, and in few operations, for most of a product's
// time goes here.
template <typename Operand>
EMULATION_PLAIN float element(uint32_t word, int part) {
  const uint32_t half = part ? word >> 16 : word & 0xffff;
  if constexpr (std::is_same_v<Operand, __half>) {
    const uint32_t magnitude = (half & 0x7fff) << 13;  // of an exponent that is 112 too small
    const float finite = bits<float>(magnitude) * 0x1p112f;
    const uint32_t value = magnitude < 0x7c00 << 13 ? bits<uint32_t>(finite) : magnitude | 0x7f800000;
    return bits<float>(value | (half & 0x8000) << 16);
  } else if constexpr (std::is_same_v<Operand, __nv_bfloat16>) {
    return bits<float>(half << 16);
  } else {
    return bits<float>(word & ~0x1fffu);  // the hardware ignores the rest
  }
}

// What the lanes of a warp get of a product of the matrices that their registers hold.
template <typename Operand>
EMULATION_PLAIN void multiply(emulation::Warp& w) {
  constexpr int PARTS = std::is_same_v<Operand, Tf32> ? 1 : 2, K = 8 * PARTS;
  float left[16][K], right[K][8], sums[16][8] = {};
  for (int lane = 0; lane < 32; ++lane)
    for (int part = 0; part < PARTS; ++part) {
      const int g = lane / 4, k = lane % 4 * PARTS + part;
      for (int i = 0; i < 4; ++i)
        left[g + i % 2 * 8][k + i / 2 * (K / 2)] = element<Operand>(w.in[lane][i], part);
      for (int i = 0; i < 2; ++i) right[k + i * (K / 2)][g] = element<Operand>(w.in[lane][4 + i], part);
    }
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < K; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += left[row][k] * right[k][column];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      w.out[lane][i] = bits<uint32_t>(sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
}

template <typename Operand>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto* out = emulation::collective(in, 6, multiply<Operand>);
  for (int i = 0; i < 4; ++i) c[i] += bits<float>(out[i]);
}

template <typename... P>
cudaError_t start(void (*kernel)(P...), dim3 grid, int threads, size_t shared, cudaStream_t,
                  const std::common_type_t<P>&... params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (planted == kMissingBlock && grid.x > 1) --grid.x;
  emulation::run_grid(grid, threads, shared, [&] { kernel(params...); });
  return cudaSuccess;
}

}  // namespace bcos::cuda
