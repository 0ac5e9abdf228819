// Sums along a run of memory: moments without cancellation, and products with a gradient.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cpu/types.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {

using namespace bcos::cpu;

// Joins `count` values, whose distances from `near` sum to `sum` and their squares to `squares`, to the
// moments of the `before` values before them. The nearer `near` lies to their mean, the less cancels.
BCOS_INLINE void join(double before, double count, double near, double sum, double squares, double& mean,
                      double& all) {
  const double inverse = 1 / count, rest = squares - sum * sum * inverse;
  const norm::Moments<double> run{near + sum * inverse, 0, rest < 0 ? 0 : rest};  // a NaN stays one
  const auto both = joined<double>({mean, 0, all}, before, run, count);
  mean = both.mean;
  all = both.squares;
}

// Values that are summed in single precision before the sum joins those before it.
constexpr int64_t kShortRun = 2048;

// Values of one such sum where nothing hides its error, in moments and the gradients of weight and bias,
// which would be 1.6 times that of PyTorch's own sum. Values in bf16 and fp16 are few different numbers,
// whose terms are rounded to the same side again and again: the error of such a sum grows as the sum does.
constexpr int64_t kShortSum = 512;

// Values whose mean is the first guess at that of a run. A mean of this many is never so far from the run's
// that much cancels: one far value moves the standard deviation too.
constexpr int64_t kGuess = 16;

struct Moment {
  double mean = 0, squares = 0;  // the mean, and the sum of the squared distances from it
};

template <typename T>
BCOS_INLINE Moment moment_of(const T* x, int64_t size) {
  using A = Accumulate<T>;
  Moment all;
  for (int64_t begin = 0; begin < size; begin += kShortRun) {
    const int64_t count = std::min(kShortRun, size - begin);
    const T* run = x + begin;
    const int64_t guessed = std::min(kGuess, count);
    double guess = 0;
    for (int64_t i = 0; i < guessed; i++) guess += double(run[i]);
    const A near = A(guess / double(guessed));
    double sum = 0, squares = 0;
    for (int64_t first = 0; first < count; first += kShortSum) {
      const int64_t last = std::min(first + kShortSum, count);
      A short_sum = 0, short_squares = 0;
#pragma omp simd reduction(+ : short_sum, short_squares)
      for (int64_t i = first; i < last; i++) {
        const A distance = A(run[i]) - near;
        short_sum += distance;
        short_squares += distance * distance;
      }
      sum += double(short_sum);
      squares += double(short_squares);
    }
    join(double(begin), double(count), near, sum, squares, all.mean, all.squares);
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
