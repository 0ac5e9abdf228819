#include "transform/cpu/weight_norm.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <vector>

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

}  // namespace

template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, int64_t begin, int64_t end, A* alpha) {
  if (!unit) return std::fill(alpha + begin, alpha + end, A(1));
  with_values<A>(weight, [&](const auto* w) {
    squares(w, alpha, begin, end, weight.numel() / weight.size(0));
    for (int64_t o = begin; o < end; o++) alpha[o] = alpha_of(alpha[o]);
  });
}
template void filter_alpha(const at::Tensor&, bool, int64_t, int64_t, float*);

template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, A* alpha) {
  const int64_t filters = weight.size(0), work = unit ? weight.numel() / filters : 1;
  parallel(filters, work, [&](int64_t begin, int64_t end) { filter_alpha(weight, unit, begin, end, alpha); });
}
template void filter_alpha(const at::Tensor&, bool, float*);
template void filter_alpha(const at::Tensor&, bool, double*);

at::Tensor filter_alpha(const at::Tensor& weight, bool unit) {
  const auto out = empty({weight.size(0)}, weight.options().dtype(accumulate_type(weight.scalar_type())));
  with_type(out.scalar_type(), [&](auto zero) {
    filter_alpha(weight, unit, out.mutable_data_ptr<Accumulate<decltype(zero)>>());
  });
  return out;
}

at::Tensor times_alpha(const at::Tensor& d, const at::Tensor& weight) {
  std::vector<int64_t> of_filter(weight.dim(), 1);
  of_filter[0] = -1;
  return at::mul(d, filter_alpha(weight, true).view(of_filter));
}

at::Tensor unit_weight(const at::Tensor& weight) {
  return times_alpha(weight, weight).to(weight.scalar_type());
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
