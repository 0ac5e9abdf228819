// Sums along a run of memory: moments without cancellation, and products with a gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/types.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {

using namespace bcos::cpu;

// The moments of `all`, of `before` values, and of `count` more, whose distances from `pivot` sum to `sum`
// and the squares of these to `squares`. The nearer the pivot lies to their mean, the less cancels.
// Moments::rest stays 0: a mean in double has digits enough without it.
BCOS_INLINE Moments<double> with_run(const Moments<double>& all, double before, double count, double pivot,
                                     double sum, double squares) {
  const double inverse = 1 / count, around = squares - sum * sum * inverse;
  const double mean = pivot + sum * inverse;
  auto both = joined<double>(all, before, {mean, 0, around < 0 ? 0 : around}, count);  // a NaN stays one
  both.rest = 0;
  return both;
}

// Values that are summed in single precision before the sum joins those before it.
constexpr int64_t kShortRun = 2048;

// Values of one such sum where nothing hides its error, in moments and the gradients of weight and bias,
// which would be 1.6 times that of PyTorch's own sum. Values in bf16 and fp16 are few different numbers,
// whose terms are rounded to the same side again and again: the error of such a sum grows as the sum does.
constexpr int64_t kShortSum = 512;

// Values whose mean is the pivot of a run. A mean of this many is never so far from the run's that much
// cancels: one far value moves the standard deviation too.
constexpr int64_t kPivotValues = 16;

template <typename T>
BCOS_INLINE Moments<double> moments_along(const T* x, int64_t size) {
  using A = Accumulate<T>;
  Moments<double> all{};
  for (int64_t begin = 0; begin < size; begin += kShortRun) {
    const int64_t count = std::min(kShortRun, size - begin);
    const T* run = x + begin;
    const int64_t first_few = std::min(kPivotValues, count);
    double total = 0;
    for (int64_t i = 0; i < first_few; i++) total += double(run[i]);
    const A pivot = A(total / double(first_few));
    double sum = 0, squares = 0;
    for (int64_t first = 0; first < count; first += kShortSum) {
      const int64_t last = std::min(first + kShortSum, count);
      A short_sum = 0, short_squares = 0;
#pragma omp simd reduction(+ : short_sum, short_squares)
      for (int64_t i = first; i < last; i++) {
        const A distance = A(run[i]) - pivot;
        short_sum += distance;
        short_squares += distance * distance;
      }
      sum += double(short_sum);
      squares += double(short_squares);
    }
    all = with_run(all, double(begin), double(count), pivot, sum, squares);
  }
  return all;
}

// The sum of grad (x − shift) and that of grad.
struct ProductSums {
  double products = 0, grads = 0;
};

template <typename T, typename U, typename A>
BCOS_INLINE void add_products(const U* grad, const T* x, A shift, int64_t size, ProductSums& all) {
  A products = 0, grads = 0;
#pragma omp simd reduction(+ : products, grads)
  for (int64_t i = 0; i < size; i++) {
    products += A(grad[i]) * (A(x[i]) - shift);
    grads += A(grad[i]);
  }
  all.products += double(products);
  all.grads += double(grads);
}

template <typename T, typename U, typename A>
BCOS_INLINE ProductSums products_of(const U* grad, const T* x, A shift, int64_t size) {
  ProductSums all;
  for (int64_t begin = 0; begin < size; begin += kShortSum)
    add_products(grad + begin, x + begin, shift, std::min(kShortSum, size - begin), all);
  return all;
}

}  // namespace bcos::norm::cpu
