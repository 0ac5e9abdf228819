// Products of a few rows at a time, so that what surrounds a product finds its rows still in cache (fp32).
#pragma once

#include <ATen/core/Tensor.h>

namespace bcos::cpu {

class RowGemm {
 public:
  static constexpr int64_t kRows = 64;

  // Whether this torch and CPU have the kernel and the operands are fp32.
  static bool serves(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype);

  // c [rows, columns] = a [rows, terms] b [terms, columns], none of them with gaps
  static void multiply(int64_t rows, int64_t columns, int64_t terms, const float* a, const float* b,
                       float* c);

  // weight [filters, size] in rows; `forward` packs it for z = x w^T, else dx = u w is ready at once.
  RowGemm(const at::Tensor& weight, bool forward);

  // z[begin, end) = x[begin, end) w^T
  void forward(const float* x, float* z, int64_t begin, int64_t end) const;
  // dx[begin, end) = u[begin, end) w
  void dgrad(const float* u, float* dx, int64_t begin, int64_t end) const;
  // To be called by each thread after its last product.
  static void release();

 private:
  at::Tensor weight_, packed_;
  int64_t filters_, size_;
};

}  // namespace bcos::cpu
