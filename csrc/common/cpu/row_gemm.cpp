#include "common/cpu/row_gemm.h"

#include <ATen/Context.h>
#include <ATen/ceil_div.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "common/cpu/tiling.h"
#include "common/cpu/transpose.h"

namespace bcos::cpu {
namespace {

namespace blas = at::native::cpublas;

constexpr int64_t kColumns = 64;  // of a packed block of w^T: four AVX-512 registers

// Terms that one accumulator sums, at most: its rounding error grows with their number, and a plain layer's
// products split too, those of its gradient into shorter sums.
constexpr int64_t kForwardTerms = 128, kGradientTerms = 64;

// A plain layer's products of few filters have shorter sums: here those for which the error of a sum is about
// that of adding the sums up.
int64_t forward_terms(int64_t filters, int64_t size) {
  if (filters >= 16) return kForwardTerms;
  return std::max<int64_t>(16, std::cbrt(double(size) * double(size) / 2));
}

template <typename T>
struct Operand {
  const T* data;
  int64_t stride;
};

// c [rows, columns] = a [rows, terms] b [terms, columns], in sums of equal length, at most `most` terms. In b
// of bf16, each two terms lie side by side.
template <typename T>
void product(int64_t rows, int64_t columns, int64_t terms, int64_t most, Operand<T> a, Operand<T> b, float* c,
             int64_t c_stride) {
  const int64_t sums = at::ceil_div(terms, most),
                length = at::round_up<int64_t>(at::ceil_div(terms, sums), 8);
  for (int64_t k = 0; k < terms; k += length)
    blas::brgemm(rows, columns, std::min(length, terms - k), a.stride, b.stride, c_stride, k > 0, a.data + k,
                 b.data + k * b.stride, c, !std::is_same_v<T, float>);
}

template <typename T>
bool probe() {
  try {  // brgemm has no query: it throws where the CPU or the build lacks it
    const T ones[] = {1, 1};
    float sum = 0;
    product<T>(1, 1, 2, 2, {ones, 2}, {ones, 1}, &sum, 1);
    RowGemm::release();
    return sum == 2;
  } catch (const std::exception&) {
    return false;
  }
}

// Whether each two values of a filter are a word: what packs the weight moves these.
bool has_pairs(const at::Tensor& weight) {
  const auto address = reinterpret_cast<uintptr_t>(weight.const_data_ptr());
  return weight.numel() / weight.size(0) % 2 == 0 && address % sizeof(float) == 0;
}

}  // namespace

bool RowGemm::serves(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype) {
  static const bool available = probe<float>();
  return available && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         out_dtype == at::kFloat;
}

bool RowGemm::serves_forward(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype) {
  if (x.scalar_type() != at::kBFloat16) return serves(x, weight, out_dtype);
  if (!at::globalContext().userEnabledMkldnn()) return false;  // brgemm is oneDNN's, and throws without it
  static const bool available = probe<c10::BFloat16>();
  return available && has_pairs(weight);
}

void RowGemm::multiply(int64_t rows, int64_t columns, int64_t terms, const float* a, const float* b,
                       float* c) {
  for (int64_t first = 0; first < columns; first += kColumns)
    product<float>(rows, std::min(kColumns, columns - first), terms, kForwardTerms, {a, terms},
                   {b + first, columns}, c + first, columns);
}

RowGemm::RowGemm(const at::Tensor& weight, bool forward, const FilterStep& beside)
    : weight_(weight), filters_(weight.size(0)), size_(weight.numel() / weight.size(0)) {
  if (!forward) return;
  packed_ = at::empty({filters_ * size_}, weight.options());  // [block][words of a filter][columns]
  const auto words = int64_t(size_ * weight.itemsize() / sizeof(float));  // a word is a float or a pair
  const auto* w = static_cast<const float*>(weight.const_data_ptr());
  auto* to = static_cast<float*>(packed_.mutable_data_ptr());
  parallel(at::ceil_div(filters_, kColumns), kColumns * words, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const int64_t first = block * kColumns, columns = std::min(kColumns, filters_ - first);
      transpose(w + first * words, words, columns, words, to + first * words, columns);
      if (beside) beside(first, first + columns);
    }
  });
}

template <typename T>
void RowGemm::forward(const T* x, float* z, int64_t rows) const {
  const T* packed = packed_.const_data_ptr<T>();
  const int64_t most = forward_terms(filters_, size_);
  for (int64_t first = 0; first < filters_; first += kColumns) {
    const int64_t columns = std::min(kColumns, filters_ - first);
    product<T>(rows, columns, size_, most, {x, size_}, {packed + first * size_, columns}, z + first,
               filters_);
  }
}
template void RowGemm::forward(const float*, float*, int64_t) const;
template void RowGemm::forward(const c10::BFloat16*, float*, int64_t) const;

void RowGemm::dgrad(const float* u, float* dx, int64_t rows) const {
  const float* w = weight_.const_data_ptr<float>();
  for (int64_t first = 0; first < size_; first += kColumns) {
    const int64_t columns = std::min(kColumns, size_ - first);
    product<float>(rows, columns, filters_, kGradientTerms, {u, filters_}, {w + first, size_}, dx + first,
                   size_);
  }
}

void RowGemm::release() {
  blas::brgemm_release();  // the tiles of registers that products of bf16 may set up
}

bool RowWgrad::pays(int64_t filters, int64_t size, int64_t rows, int64_t shares) {
  constexpr int64_t kMost = 1 << 17, kLeastRows = 512;  // values of a share, and what it takes to fill them
  return filters * size <= kMost && rows >= shares * kLeastRows;
}

RowWgrad::RowWgrad(int64_t filters, int64_t size, int64_t shares)
    : transposes_x_(size < filters),
      tall_(std::min(filters, size)),
      wide_(std::max(filters, size)),
      transposed_(at::empty({shares, tall_, RowGemm::kRows}, at::kFloat)),
      sums_(at::zeros({shares, tall_, wide_}, at::kFloat)) {}

void RowWgrad::add(int64_t share, const float* u, const float* x, int64_t rows) const {
  const float *narrow = transposes_x_ ? x : u, *other = transposes_x_ ? u : x;
  float* left = transposed_.mutable_data_ptr<float>() + share * tall_ * RowGemm::kRows;
  float* sums = sums_.mutable_data_ptr<float>() + share * tall_ * wide_;
  transpose(narrow, tall_, rows, tall_, left, rows);
  for (int64_t first = 0; first < wide_; first += kColumns)
    blas::brgemm(tall_, std::min(kColumns, wide_ - first), rows, rows, wide_, wide_, true, left,
                 other + first, sums + first, false);
}

at::Tensor RowWgrad::sum() const {
  const auto sum = sums_.sum(0);
  return transposes_x_ ? sum.t().contiguous() : sum;
}

}  // namespace bcos::cpu
