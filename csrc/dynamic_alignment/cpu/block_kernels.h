// The passes of block.h for any type. Each block_*.cpp compiles them for its own.
#pragma once

#include <algorithm>

#include "dynamic_alignment/cpu/block.h"
#include "dynamic_alignment/formula.h"

namespace bcos::dynamic_alignment::cpu {
namespace {

// Pixels whose sums stay in registers while the values of a block are walked through.
constexpr int64_t kChunk = 64;

template <Norm kind, typename A>
BCOS_INLINE void forward_chunk(const BlockForward<A>& f, int64_t o, int64_t begin, int64_t size) {
  A l[kChunk] = {}, sums[kChunk] = {};
  for (int64_t v = 0; v < f.values; v++) {
    const int64_t row = v * f.outputs + o;
    const A bias = f.bias ? f.bias[row] : A(0);
    const A *w = f.w + row * f.pixels + begin, *u = f.u + v * f.pixels + begin;
#pragma omp simd
    for (int64_t t = 0; t < size; t++) {
      const A value = w[t] + bias;
      l[t] += value * u[t];
      sums[t] += norm_term<kind>(value);
    }
  }
  A *all_l = f.l + o * f.pixels + begin, *all_sums = f.sums + o * f.pixels + begin;
#pragma omp simd
  for (int64_t t = 0; t < size; t++) {
    all_l[t] += l[t];
    all_sums[t] += sums[t];
  }
}

template <Norm kind, typename A>
BCOS_INLINE void forward(const BlockForward<A>& f) {
  for (int64_t o = 0; o < f.outputs; o++) {
    int64_t begin = 0;
    for (; begin + kChunk <= f.pixels; begin += kChunk) forward_chunk<kind>(f, o, begin, kChunk);
    if (begin < f.pixels) forward_chunk<kind>(f, o, begin, f.pixels - begin);
  }
}

template <typename A>
BCOS_INLINE void forward(const BlockForward<A>& f) {
  if (f.norm == Norm::L1)
    forward<Norm::L1>(f);
  else
    forward<Norm::L2>(f);  // the sum of squares is that of squashing, too
}

template <typename A>
BCOS_INLINE void finish(const Finish<A>& f) {
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) {
    const A norm = norm_of(f.norm, f.sums[i]);
    f.sums[i] = norm;
    f.y[i] = scale(f.norm, norm) * f.l[i];
  }
}

template <typename A>
BCOS_INLINE void start(const Start<A>& f) {
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) f.of_u[i] = f.grad[i] * scale(f.norm, f.norms[i]);
  if (!f.of_w) return;
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) f.of_w[i] = f.of_u[i] * f.l[i] * slope(f.norm, f.norms[i]);
}

template <Norm kind, bool Training, typename A>
BCOS_INLINE void backward_chunk(const BlockBackward<A>& f, int64_t v, int64_t begin, int64_t size) {
  A du[kChunk] = {};
  const A* u = f.u + v * f.pixels + begin;
  for (int64_t o = 0; o < f.outputs; o++) {
    const int64_t row = v * f.outputs + o;
    const A bias = f.bias ? f.bias[row] : A(0);
    A* w = f.w + row * f.pixels + begin;
    const A *of_u = f.of_u + o * f.pixels + begin, *of_w = Training ? f.of_w + o * f.pixels + begin : nullptr;
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < size; t++) {
      const A value = w[t] + bias;
      du[t] += of_u[t] * value;
      if constexpr (Training) {
        const A dw = of_u[t] * u[t] + of_w[t] * direction<kind>(value);
        w[t] = dw;
        sum += dw;
      }
    }
    if constexpr (Training) f.dbias[row] += sum;
  }
  std::copy_n(du, size, f.du + v * f.pixels + begin);
}

template <Norm kind, bool Training, typename A>
BCOS_INLINE void backward(const BlockBackward<A>& f) {
  for (int64_t v = 0; v < f.values; v++) {
    int64_t begin = 0;
    for (; begin + kChunk <= f.pixels; begin += kChunk) backward_chunk<kind, Training>(f, v, begin, kChunk);
    if (begin < f.pixels) backward_chunk<kind, Training>(f, v, begin, f.pixels - begin);
  }
}

template <typename A>
BCOS_INLINE void backward(const BlockBackward<A>& f) {
  if (!f.of_w)
    backward<Norm::L2, false>(f);
  else if (f.norm == Norm::L1)
    backward<Norm::L1, true>(f);
  else
    backward<Norm::L2, true>(f);
}

}  // namespace
}  // namespace bcos::dynamic_alignment::cpu
