#include "dynamic_alignment/cpu/block.h"

#include <algorithm>

#include "dynamic_alignment/formula.h"

namespace bcos::dynamic_alignment::cpu {
namespace {

// Adds `count` values of the patch at once, so that l and the sums are read and written less often. Rows are
// walked through one after the other, as they lie in memory.
template <Norm kind, int count, typename A>
BCOS_INLINE void add_values(const BlockForward<A>& f, int64_t first) {
  for (int64_t o = 0; o < f.outputs; o++) {
    const A *w[count], *u[count];
    A bias[count];
    for (int i = 0; i < count; i++) {
      const int64_t row = (first + i) * f.outputs + o;
      w[i] = f.w + row * f.pixels;
      u[i] = f.u + (first + i) * f.pixels;
      bias[i] = f.bias ? f.bias[row] : A(0);
    }
    A *l = f.l + o * f.pixels, *sums = f.sums + o * f.pixels;
#pragma omp simd
    for (int64_t t = 0; t < f.pixels; t++) {
      A product = 0, sum = 0;
      for (int i = 0; i < count; i++) {
        const A value = w[i][t] + bias[i];
        product += value * u[i][t];
        sum += norm_term<kind>(value);
      }
      l[t] += product;
      sums[t] += sum;
    }
  }
}

template <Norm kind, typename A>
BCOS_INLINE void forward(const BlockForward<A>& f) {
  int64_t v = 0;
  for (; v + 4 <= f.values; v += 4) add_values<kind, 4>(f, v);
  for (; v + 2 <= f.values; v += 2) add_values<kind, 2>(f, v);
  if (v < f.values) add_values<kind, 1>(f, v);
}

// Adds what `count` outputs give to du of one value of the patch.
template <int count, typename A>
BCOS_INLINE void add_outputs(const BlockBackward<A>& f, int64_t v, int64_t first) {
  const A *w[count], *of_u[count];
  A bias[count];
  for (int i = 0; i < count; i++) {
    const int64_t row = v * f.outputs + first + i;
    w[i] = f.w + row * f.pixels;
    of_u[i] = f.of_u + (first + i) * f.pixels;
    bias[i] = f.bias ? f.bias[row] : A(0);
  }
  A* du = f.du + v * f.pixels;
#pragma omp simd
  for (int64_t t = 0; t < f.pixels; t++) {
    A sum = 0;
    for (int i = 0; i < count; i++) sum += of_u[i][t] * (w[i][t] + bias[i]);
    du[t] += sum;
  }
}

template <typename A>
BCOS_INLINE void explanation(const BlockBackward<A>& f) {
  for (int64_t v = 0; v < f.values; v++) {
    int64_t o = 0;
    for (; o + 4 <= f.outputs; o += 4) add_outputs<4>(f, v, o);
    for (; o < f.outputs; o++) add_outputs<1>(f, v, o);
  }
}

template <Norm kind, typename A>
BCOS_INLINE void training(const BlockBackward<A>& f) {
  for (int64_t row = 0; row < f.values * f.outputs; row++) {
    const int64_t v = row / f.outputs * f.pixels, o = row % f.outputs * f.pixels;
    const A bias = f.bias ? f.bias[row] : A(0);
    const A *u = f.u + v, *of_u = f.of_u + o, *of_w = f.of_w + o;
    A *w = f.w + row * f.pixels, *du = f.du + v, sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = 0; t < f.pixels; t++) {
      const A value = w[t] + bias, dw = of_u[t] * u[t] + of_w[t] * direction<kind>(value);
      du[t] += of_u[t] * value;
      w[t] = dw;
      sum += dw;
    }
    f.dbias[row] += sum;
  }
}

}  // namespace

template <typename A>
BCOS_CLONES void run(const BlockForward<A>& f) {
  if (f.norm == Norm::L1)
    forward<Norm::L1>(f);
  else
    forward<Norm::L2>(f);  // the sum of squares is that of squashing, too
}

template <typename A>
BCOS_CLONES void run(const Finish<A>& f) {
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) {
    const A norm = norm_of(f.norm, f.sums[i]);
    f.sums[i] = norm;
    f.y[i] = scale(f.norm, norm) * f.l[i];
  }
}

template <typename A>
BCOS_CLONES void run(const Start<A>& f) {
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) f.of_u[i] = f.grad[i] * scale(f.norm, f.norms[i]);
  if (!f.of_w) return;
#pragma omp simd
  for (int64_t i = 0; i < f.size; i++) f.of_w[i] = f.of_u[i] * f.l[i] * slope(f.norm, f.norms[i]);
}

template <typename A>
BCOS_CLONES void run(const BlockBackward<A>& f) {
  std::fill_n(f.du, f.values * f.pixels, A(0));
  if (!f.of_w)
    explanation(f);
  else if (f.norm == Norm::L1)
    training<Norm::L1>(f);
  else
    training<Norm::L2>(f);
}

template void run(const BlockForward<float>&);
template void run(const Finish<float>&);
template void run(const Start<float>&);
template void run(const BlockBackward<float>&);
template void run(const BlockForward<double>&);
template void run(const Finish<double>&);
template void run(const Start<double>&);
template void run(const BlockBackward<double>&);

}  // namespace bcos::dynamic_alignment::cpu
