// The passes of positions.h for any element types. Each positions_*.cpp compiles them for its own types.
#pragma once

#include <algorithm>
#include <vector>

#include "norm/cpu/moments.h"
#include "norm/cpu/positions.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {
namespace {

template <typename T, typename U>
BCOS_INLINE void row_forward(const RowForward<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const A *gamma = f.gamma, *beta = f.beta;
  for (int64_t r = begin; r < end; r++) {
    const T* x = f.x + r * f.channels;
    U* y = f.y + r * f.channels;
    const Moment row = moment_of(x, f.channels);
    f.mean[r] = A(row.mean);
    f.var[r] = A(row.squares / double(f.channels));
    const A gain = inverse_std(f.var[r], f.eps), shift = f.centered ? f.mean[r] : A(0);
#pragma omp simd
    for (int64_t c = 0; c < f.channels; c++) y[c] = U((A(x[c]) - shift) * gain * gamma[c] + beta[c]);
  }
}

// Rows whose terms of dgamma and dbeta are summed in single precision before the sums join those before them.
constexpr int64_t kRunRows = 64;

template <typename T, typename U, typename A>
BCOS_INLINE void add_row(const RowBackward<T, U>& f, int64_t row, A r, A shift, A* dgamma, A* dbeta) {
  const U* grad = f.grad + row * f.channels;
  const T* x = f.x + row * f.channels;
#pragma omp simd
  for (int64_t c = 0; c < f.channels; c++) {
    const A g = A(grad[c]);
    dgamma[c] += g * (A(x[c]) - shift) * r;
    dbeta[c] += g;
  }
}

template <typename T, typename U, typename A>
BCOS_INLINE void row_input_gradient(const RowBackward<T, U>& f, int64_t row, A r, A shift) {
  const U* grad = f.grad + row * f.channels;
  const T* x = f.x + row * f.channels;
  T* dx = f.dx + row * f.channels;
  const A *gamma = f.gamma, mean = f.mean[row];
  double products = 0, grads = 0;
  for (int64_t begin = 0; begin < f.channels; begin += kShortRun) {
    const int64_t end = std::min(begin + kShortRun, f.channels);
    A short_products = 0, short_grads = 0;
#pragma omp simd reduction(+ : short_products, short_grads)
    for (int64_t c = begin; c < end; c++) {
      const A g = A(grad[c]) * gamma[c];
      short_products += g * (A(x[c]) - shift);
      short_grads += g;
    }
    products += double(short_products);
    grads += double(short_grads);
  }
  const auto k = gradient<A>(r, A(1), A(products), A(grads), A(f.channels), f.centered, f.frozen);
#pragma omp simd
  for (int64_t c = 0; c < f.channels; c++)
    dx[c] = T(A(grad[c]) * gamma[c] * k.of_grad + (A(x[c]) - mean) * k.of_x + k.offset);
}

template <typename T, typename U>
BCOS_INLINE void row_backward(const RowBackward<T, U>& f, int64_t share, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const int64_t C = f.channels;
  std::vector<A> sums(f.dgamma ? 2 * C : 0);
  A *dgamma = sums.data(), *dbeta = dgamma + C;
  for (int64_t first = begin; first < end; first += kRunRows) {
    const int64_t last = std::min(first + kRunRows, end);
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t row = first; row < last; row++) {
      const A r = inverse_std(f.var[row], f.eps), shift = f.centered ? f.mean[row] : A(0);
      if (f.dgamma) add_row(f, row, r, shift, dgamma, dbeta);
      if (f.dx) row_input_gradient(f, row, r, shift);
    }
    if (!f.dgamma) continue;
    for (int64_t c = 0; c < C; c++) {
      f.dgamma[share * C + c] += double(dgamma[c]);
      f.dbeta[share * C + c] += double(dbeta[c]);
    }
  }
}

}  // namespace
}  // namespace bcos::norm::cpu
