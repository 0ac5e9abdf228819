#include "transform/cpu/weight_norm.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/mul.h>

#include <algorithm>

#include "common/cpu/empty.h"
#include "common/cpu/sums.h"
#include "common/cpu/tiling.h"
#include "common/scalar.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

namespace {

// <w, d> / <w, w> where <w, d> overflows and the quotient may not
template <typename T>
Accumulate<T> scaled_quotient(const T* w, const T* d, int64_t size, Accumulate<T> squares) {
  using A = Accumulate<T>;
  const A inverse = 1 / std::sqrt(squares);
  A sum = 0;
  for (int64_t i = 0; i < size; i++) sum += A(w[i]) * inverse * (A(d[i]) * inverse);
  return sum;
}

// d -= w <w, d> / <w, w>. It divides by <w, w> itself, so that nothing is left of a filter of one entry. (The
// CUDA kernel has only 1/|w| at hand and multiplies with its square: one sum less.)
template <typename T>
BCOS_INLINE void project(const T* w, T* d, int64_t size) {
  const auto squares = dot(w, w, size);
  auto along = squares == 0 ? 0 : dot(w, d, size) / squares;
  if (!std::isfinite(along)) along = scaled_quotient(w, d, size, squares);
#pragma omp simd
  for (int64_t i = 0; i < size; i++) d[i] = rounded<T>(Accumulate<T>(d[i]) - Accumulate<T>(w[i]) * along);
}

// out[o] = <w, w> of filters [begin, end), each of `size` values
template <typename T>
BCOS_CLONES void squares(const T* w, Accumulate<T>* out, int64_t begin, int64_t end, int64_t size) {
  for (int64_t o = begin; o < end; o++) out[o] = dot(w + o * size, w + o * size, size);
}

template <typename T>
BCOS_CLONES void projections(const T* w, T* d, int64_t begin, int64_t end, int64_t size) {
  for (int64_t o = begin; o < end; o++) project(w + o * size, d + o * size, size);
}

// rounded once: its error is that of every output of the filter
template <typename A>
A alpha_of(A squares) {
  return A(safe_inverse(std::sqrt(double(squares))));
}

at::Tensor empty_sums(const at::Tensor& weight) {
  return empty({weight.size(0)}, weight.options().dtype(accumulate_type(weight.scalar_type())));
}

// out = finish(<w, w>) of each filter
template <typename A, typename F>
void of_squares(const at::Tensor& weight, A* out, F&& finish) {
  const int64_t filters = weight.size(0), size = weight.numel() / filters;
  with_values<A>(weight, [&](const auto* w) {
    parallel(filters, size, [&](int64_t begin, int64_t end) {
      squares(w, out, begin, end, size);
      for (int64_t i = begin; i < end; i++) out[i] = finish(out[i]);
    });
  });
}

}  // namespace

at::Tensor weight_norm(const at::Tensor& weight) {
  const auto out = empty_sums(weight);
  with_type(out.scalar_type(), [&](auto zero) {
    using A = Accumulate<decltype(zero)>;
    of_squares(weight, out.mutable_data_ptr<A>(), [](A squares) { return std::sqrt(squares); });
  });
  return out;
}

template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, A* alpha) {
  if (unit) return of_squares(weight, alpha, [](A squares) { return alpha_of(squares); });
  std::fill_n(alpha, weight.size(0), A(1));
}
template void filter_alpha(const at::Tensor&, bool, float*);
template void filter_alpha(const at::Tensor&, bool, double*);

at::Tensor filter_alpha(const at::Tensor& weight, bool unit) {
  const auto out = empty_sums(weight);
  with_type(out.scalar_type(), [&](auto zero) {
    filter_alpha(weight, unit, out.mutable_data_ptr<Accumulate<decltype(zero)>>());
  });
  return out;
}

void filter_alpha(const at::Tensor& weight, bool unit, int64_t begin, int64_t end, float* alpha) {
  if (!unit) return std::fill(alpha + begin, alpha + end, 1.f);
  with_values<float>(weight, [&](const auto* w) {
    squares(w, alpha, begin, end, weight.numel() / weight.size(0));
    for (int64_t i = begin; i < end; i++) alpha[i] = alpha_of(alpha[i]);
  });
}

at::Tensor unit_weight(const at::Tensor& weight) {
  const auto alpha = filter_alpha(weight, true);
  auto shape = std::vector<int64_t>(weight.dim(), 1);
  shape[0] = -1;
  return at::mul(weight.to(alpha.scalar_type()), alpha.view(shape)).to(weight.scalar_type());
}

void weight_norm_backward(const at::Tensor& weight, at::Tensor& d) {
  const int64_t filters = weight.size(0), size = weight.numel() / filters;
  with_type(weight.scalar_type(), [&](auto t) {
    using T = decltype(t);
    const T* w = weight.const_data_ptr<T>();
    T* out = d.mutable_data_ptr<T>();
    parallel(filters, 2 * size, [&](int64_t begin, int64_t end) { projections(w, out, begin, end, size); });
  });
}

void weight_norm_backward(const float* weight, float* d, int64_t size, int64_t begin, int64_t end) {
  projections(weight, d, begin, end, size);
}

}  // namespace bcos::transform::cpu
