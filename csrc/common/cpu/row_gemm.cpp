#include "common/cpu/row_gemm.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "common/cpu/tiling.h"
#include "common/cpu/transpose.h"

namespace bcos::cpu {
namespace {

namespace blas = at::native::cpublas;

constexpr int64_t kColumns = 64;  // of a packed block of w^T: four AVX-512 registers

// Terms that one accumulator sums: its rounding error grows with their number, and a plain layer's products
// split too, those of its gradient into shorter sums.
constexpr int64_t kForwardTerms = 192, kGradientTerms = 64;

struct Operand {
  const float* data;
  int64_t stride;
};

// c [rows, columns] = a [rows, terms] b [terms, columns], at most `most` terms in one sum
void product(int64_t rows, int64_t columns, int64_t terms, int64_t most, Operand a, Operand b, float* c,
             int64_t c_stride) {
  for (int64_t k = 0; k < terms; k += most)
    blas::brgemm(rows, columns, std::min(most, terms - k), a.stride, b.stride, c_stride, k > 0, a.data + k,
                 b.data + k * b.stride, c, false);
}

bool probe() {
  try {  // brgemm has no query: it throws where the CPU or the build lacks it
    const float one = 1;
    float product = 0;
    blas::brgemm(1, 1, 1, 1, 1, 1, false, &one, &one, &product, false);
    blas::brgemm_release(false);
    return product == 1;
  } catch (const std::exception&) {
    return false;
  }
}

}  // namespace

bool RowGemm::serves(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype) {
  static const bool available = probe();
  return available && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         out_dtype == at::kFloat;
}

void RowGemm::multiply(int64_t rows, int64_t columns, int64_t terms, const float* a, const float* b,
                       float* c) {
  for (int64_t first = 0; first < columns; first += kColumns)
    product(rows, std::min(kColumns, columns - first), terms, kForwardTerms, {a, terms}, {b + first, columns},
            c + first, columns);
}

RowGemm::RowGemm(const at::Tensor& weight, bool forward, const FilterStep& beside)
    : weight_(weight), filters_(weight.size(0)), size_(weight.numel() / weight.size(0)) {
  if (!forward) return;
  packed_ = at::empty({filters_ * size_}, weight.options());  // [block][size][columns]
  const float* w = weight.const_data_ptr<float>();
  float* to = packed_.mutable_data_ptr<float>();
  parallel((filters_ + kColumns - 1) / kColumns, kColumns * size_, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const int64_t first = block * kColumns, columns = std::min(kColumns, filters_ - first);
      transpose(w + first * size_, size_, columns, size_, to + first * size_, columns);
      if (beside) beside(first, first + columns);
    }
  });
}

void RowGemm::forward(const float* x, float* z, int64_t begin, int64_t end) const {
  const float* packed = packed_.const_data_ptr<float>();
  for (int64_t first = 0; first < filters_; first += kColumns) {
    const int64_t columns = std::min(kColumns, filters_ - first);
    product(end - begin, columns, size_, kForwardTerms, {x + begin * size_, size_},
            {packed + first * size_, columns}, z + begin * filters_ + first, filters_);
  }
}

void RowGemm::dgrad(const float* u, float* dx, int64_t rows) const {
  const float* w = weight_.const_data_ptr<float>();
  for (int64_t first = 0; first < size_; first += kColumns) {
    const int64_t columns = std::min(kColumns, size_ - first);
    product(rows, columns, filters_, kGradientTerms, {u, filters_}, {w + first, size_}, dx + first, size_);
  }
}

void RowGemm::release() {
  blas::brgemm_release(false);
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
