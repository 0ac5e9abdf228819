// Products of a few rows at a time, so that what surrounds a product finds its rows still in cache: of fp32,
// and forward of bf16 with sums of fp32, too.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace bcos::cpu {

class RowGemm {
 public:
  static constexpr int64_t kRows = 64;

  // Whether this torch and CPU have the kernel and the operands are fp32.
  static bool serves(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype);
  // Whether `forward` serves: it also takes rows of bf16, with a weight of any dtype that is rounded to it.
  static bool serves_forward(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype);

  // c [rows, columns] = a [rows, terms] b [terms, columns], none of them with gaps
  static void multiply(int64_t rows, int64_t columns, int64_t terms, const float* a, const float* b,
                       float* c);

  // What else is formed from filters [begin, end) of the weight.
  using FilterStep = std::function<void(int64_t begin, int64_t end)>;

  // weight [filters, size] in rows; `forward` packs it for z = x w^T, else dx = u w is ready at once (fp32).
  // `beside` is called for all filters in parallel, each time with some that packing has brought into cache.
  RowGemm(const at::Tensor& weight, bool forward, const FilterStep& beside = {});

  // z [rows, filters] = x [rows, size] w^T, of the weight's type
  template <typename T>
  void forward(const T* x, float* z, int64_t rows) const;
  // dx [rows, size] = u [rows, filters] w
  void dgrad(const float* u, float* dx, int64_t rows) const;
  // To be called by each thread after its last product.
  static void release();

 private:
  at::Tensor weight_, packed_;
  int64_t filters_, size_;
};

// u^T x, summed over the rows of u [rows, filters] and x [rows, size]: the gradient of a weight.
class RowWgrad {
 public:
  // Whether it pays: each of `shares` threads adds up a gradient of its own, which has to stay in cache.
  static bool pays(int64_t filters, int64_t size, int64_t rows, int64_t shares);

  RowWgrad(int64_t filters, int64_t size, int64_t shares);

  // Adds u^T x of at most RowGemm::kRows rows to a share, which belongs to one thread.
  void add(int64_t share, const float* u, const float* x, int64_t rows) const;
  // The sum of the shares, [filters, size]
  at::Tensor sum() const;

 private:
  // Of u and x, the narrower is transposed: [tall, rows] [rows, wide] is u^T x, or its transpose.
  bool transposes_x_;
  int64_t tall_, wide_;
  at::Tensor transposed_;  // [shares, tall, kRows]
  at::Tensor sums_;        // [shares, tall, wide]
};

}  // namespace bcos::cpu
