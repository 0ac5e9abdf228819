#include "common/cpu/row_gemm.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "common/cpu/tiling.h"

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

RowGemm::RowGemm(const at::Tensor& weight, bool forward)
    : weight_(weight), filters_(weight.size(0)), size_(weight.numel() / weight.size(0)) {
  if (!forward) return;
  packed_ = at::empty({filters_ * size_}, weight.options());  // [block][size][columns]
  const float* w = weight.const_data_ptr<float>();
  float* to = packed_.mutable_data_ptr<float>();
  parallel((filters_ + kColumns - 1) / kColumns, kColumns * size_, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const int64_t first = block * kColumns, columns = std::min(kColumns, filters_ - first);
      for (int64_t part = 0; part < size_; part += 16)  // one cache line of every filter at a time
        for (int64_t k = part; k < std::min(part + 16, size_); k++)
          for (int64_t c = 0; c < columns; c++)
            to[first * size_ + k * columns + c] = w[(first + c) * size_ + k];
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

void RowGemm::dgrad(const float* u, float* dx, int64_t begin, int64_t end) const {
  const float* w = weight_.const_data_ptr<float>();
  for (int64_t first = 0; first < size_; first += kColumns) {
    const int64_t columns = std::min(kColumns, size_ - first);
    product(end - begin, columns, filters_, kGradientTerms, {u + begin * filters_, filters_},
            {w + first, size_}, dx + begin * size_ + first, size_);
  }
}

void RowGemm::release() {
  blas::brgemm_release(false);
}

}  // namespace bcos::cpu
