#include "norm/cpu/positions.h"

#include <algorithm>

#include "common/cpu/lines.h"
#include "norm/cpu/sums.h"
#include "norm/formula.h"

namespace bcos::norm::cpu {
namespace {

// Rows whose terms of dgamma and dbeta are summed in single precision before the sums join those before them.
constexpr int64_t kRunRows = 32;

// The sums of grad gamma (x − shift) and of grad gamma along a run of a row, and what the run adds to dgamma
// and dbeta.
template <bool Parameters, typename T, typename U, typename A>
BCOS_INLINE void add_run(const U* grad, const T* x, const A* gamma, A shift, A r, int64_t size, A* dgamma,
                         A* dbeta, ProductSums& all) {
  A products = 0, grads = 0;
#pragma omp simd reduction(+ : products, grads)
  for (int64_t i = 0; i < size; i++) {
    const A g = A(grad[i]), moved = A(x[i]) - shift, scaled = g * gamma[i];
    products += scaled * moved;
    grads += scaled;
    if constexpr (Parameters) {
      dgamma[i] += g * moved * r;
      dbeta[i] += g;
    }
  }
  all.products += double(products);
  all.grads += double(grads);
}

template <typename T, typename U, typename A>
BCOS_INLINE void row_second(const RowSecond<T, U>& f, int64_t row, A* dgamma, A* dbeta) {
  const int64_t C = f.channels;
  const U* grad = f.grad + row * C;
  const T* v = f.v + row * C;
  const A r = inverse_std(f.var[row], f.eps), shift = f.centered ? A(moments_along(v, C).mean) : A(0);
  ProductSums sums;
  for (int64_t c = 0; c < C; c += kShortRun)
    add_run<true>(grad + c, v + c, f.gamma + c, shift, r, std::min(kShortRun, C - c), dgamma + c, dbeta + c,
                  sums);
  if (f.dvar) f.dvar[row] = A(var_gradient<double>(r, sums.products));
  U* dgrad = f.dgrad + row * C;
#pragma omp simd
  for (int64_t c = 0; c < C; c++) dgrad[c] = rounded<U>((A(v[c]) - shift) * r * f.gamma[c]);
}

template <bool Parameters, typename T, typename U, typename A>
BCOS_INLINE void row_backward(const RowBackward<T, U>& f, int64_t row, A* dgamma, A* dbeta) {
  const int64_t C = f.channels;
  const U* grad = f.grad + row * C;
  const T* x = f.x + row * C;
  const A mean = f.mean[row], r = inverse_std(f.var[row], f.eps), shift = f.centered ? mean : A(0);
  ProductSums sums;
  for (int64_t c = 0; c < C; c += kShortRun)
    add_run<Parameters>(grad + c, x + c, f.gamma + c, shift, r, std::min(kShortRun, C - c), dgamma + c,
                        dbeta + c, sums);
  if (!f.dx) return;
  auto k = gradient<A>(r, A(1), A(sums.products), A(sums.grads), A(C), f.centered, f.frozen);
  if (f.dvar) k.of_x += of_var(f.dvar[row], A(C));
  T* dx = f.dx + row * C;
#pragma omp simd
  for (int64_t c = 0; c < C; c++)
    dx[c] = rounded<T>(A(grad[c]) * f.gamma[c] * k.of_grad + (A(x[c]) - mean) * k.of_x + k.offset);
}

// body(row, dgamma, dbeta) for every row, which adds to rows of channels; their sums join those of the share.
// Either of the latter may be null.
template <typename A, typename F>
BCOS_INLINE void with_sums(int64_t C, double* all_dgamma, double* all_dbeta, int64_t begin, int64_t end,
                           F&& body) {
  Lines<A> sums(2 * C);
  A *dgamma = sums.data(), *dbeta = dgamma + C;
  for (int64_t first = begin; first < end; first += kRunRows) {
    const int64_t last = std::min(first + kRunRows, end);
    std::fill(sums.begin(), sums.end(), A(0));
    for (int64_t row = first; row < last; row++) body(row, dgamma, dbeta);
    for (int64_t c = 0; c < C; c++) {
      if (all_dgamma) all_dgamma[c] += double(dgamma[c]);
      if (all_dbeta) all_dbeta[c] += double(dbeta[c]);
    }
  }
}

}  // namespace

template <typename T, typename U>
BCOS_CLONES void run(const RowForward<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const A *gamma = f.gamma, *beta = f.beta;
  for (int64_t r = begin; r < end; r++) {
    const T* x = f.x + r * f.channels;
    U* y = f.y + r * f.channels;
    const Moments<double> row = moments_along(x, f.channels);
    f.mean[r] = A(row.mean);
    f.var[r] = A(row.squares / double(f.channels));
    const A gain = inverse_std(f.var[r], f.eps), shift = f.centered ? f.mean[r] : A(0);
#pragma omp simd
    for (int64_t c = 0; c < f.channels; c++) y[c] = rounded<U>((A(x[c]) - shift) * gain * gamma[c] + beta[c]);
  }
}

template <typename T, typename U>
BCOS_CLONES void run(const RowBackward<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  if (!f.dgamma) {
    for (int64_t row = begin; row < end; row++) row_backward<false, T, U, A>(f, row, nullptr, nullptr);
    return;
  }
  with_sums<A>(f.channels, f.dgamma, f.dbeta, begin, end,
               [&](int64_t row, A* dgamma, A* dbeta)
                   BCOS_INLINE_BODY { row_backward<true>(f, row, dgamma, dbeta); });
}

template <typename T, typename U>
BCOS_CLONES void run(const RowSecond<T, U>& f, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  with_sums<A>(f.channels, f.dgamma, nullptr, begin, end,
               [&](int64_t row, A* dgamma, A* dbeta)
                   BCOS_INLINE_BODY { row_second<T, U, A>(f, row, dgamma, dbeta); });
}

template void run(const RowForward<float, float>&, int64_t, int64_t);
template void run(const RowBackward<float, float>&, int64_t, int64_t);
template void run(const RowSecond<float, float>&, int64_t, int64_t);
template void run(const RowForward<double, double>&, int64_t, int64_t);
template void run(const RowBackward<double, double>&, int64_t, int64_t);
template void run(const RowSecond<double, double>&, int64_t, int64_t);
template void run(const RowForward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowBackward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowSecond<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const RowForward<BFloat16, float>&, int64_t, int64_t);
template void run(const RowBackward<BFloat16, float>&, int64_t, int64_t);
template void run(const RowSecond<BFloat16, float>&, int64_t, int64_t);

}  // namespace bcos::norm::cpu
