#include "transform/cpu/few_rows.h"

#include <algorithm>
#include <cstring>

#include "common/cpu/empty.h"
#include "common/cpu/lines.h"
#include "common/cpu/registers.h"
#include "common/cpu/row_gemm.h"
#include "common/cpu/tiling.h"
#include "common/cpu/transpose.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

namespace {

constexpr int64_t kMostRows = 64;
// With so many rows RowGemm, whose columns they are, is faster than sums of our own ...
constexpr int64_t kGemmRows = 16;
// ... and, for the gradient of the weight, faster than the vendor's product.
constexpr int64_t kGradientRows = 4;
// With fewer filters RowGemm's sums are longer than the vendor's, and have more error: they are our own.
constexpr int64_t kGemmFilters = 16;
constexpr int64_t kFilters = 32;  // of a block: they stay in the caches of one core

// body(begin, end) with the filters of each block, in parallel
template <typename F>
void each_block(int64_t filters, int64_t work_each, F&& body) {
  parallel(at::ceil_div(filters, kFilters), kFilters * work_each, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) body(i * kFilters, std::min(filters, (i + 1) * kFilters));
    RowGemm::release();
  });
}

#if defined(__GNUC__)
constexpr int kRows = 4;        // that share each load of a filter
constexpr int64_t kTerms = 96;  // of one sum: its rounding error grows with their number

template <int Lanes>
BCOS_INLINE float total(const Register<Lanes>& v) {
  if constexpr (Lanes == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else {
    Register<Lanes / 2> halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return total<Lanes / 2>(halves[0] + halves[1]);
  }
}

// z = x w^T for R rows of x and F filters. The sum of a row and a filter is the same for every R and F.
template <int Lanes, int R, int F>
BCOS_INLINE void multiply(const float* x, const float* w, int64_t size, float* z, int64_t z_stride) {
  float sums[R][F] = {};
  int64_t i = 0;
  while (i + Lanes <= size) {
    const int64_t end = std::min(size, i + kTerms * Lanes);
    Register<Lanes> sum[R][F] = {};
    for (; i + Lanes <= end; i += Lanes) {
      Register<Lanes> b[F];
#pragma GCC unroll 4
      for (int f = 0; f < F; f++) std::memcpy(&b[f], w + f * size + i, sizeof(b[f]));
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        Register<Lanes> a;
        std::memcpy(&a, x + r * size + i, sizeof(a));
#pragma GCC unroll 4
        for (int f = 0; f < F; f++) sum[r][f] += a * b[f];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int f = 0; f < F; f++) sums[r][f] += total<Lanes>(sum[r][f]);
  }
  for (int r = 0; r < R; r++)
    for (int f = 0; f < F; f++) {
      for (int64_t k = i; k < size; k++) sums[r][f] += x[r * size + k] * w[f * size + k];
      z[r * z_stride + f] = sums[r][f];
    }
}

template <int Lanes, int F>
BCOS_INLINE void multiply_rows(const float* x, int64_t rows, const float* w, int64_t size, float* z,
                               int64_t z_stride) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    multiply<Lanes, kRows, F>(x + row * size, w, size, z + row * z_stride, z_stride);
  for (; row < rows; row++) multiply<Lanes, 1, F>(x + row * size, w, size, z + row * z_stride, z_stride);
}

// z = x w^T for filters [begin, end), of which z has `filters` in a row
void products(const float* x, int64_t rows, const float* w, int64_t size, int64_t begin, int64_t end,
              float* z, int64_t filters) {
  by_lanes([&](auto lanes) BCOS_INLINE_BODY {
    constexpr int L = lanes(), F = L == 16 ? 4 : 2;  // what the registers hold the sums of
    int64_t f = begin;
    for (; f + F <= end; f += F) multiply_rows<L, F>(x, rows, w + f * size, size, z + f, filters);
    for (; f < end; f++) multiply_rows<L, 1>(x, rows, w + f * size, size, z + f, filters);
  });
}
#else
void products(const float*, int64_t, const float*, int64_t, int64_t, int64_t, float*, int64_t) {}
#endif

}  // namespace

bool few_rows_serve(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype) {
#if defined(__GNUC__)
  return x.size(0) <= kMostRows && RowGemm::serves(x, weight, out_dtype);
#else
  return false;
#endif
}

bool few_rows_serve_wgrad(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype) {
  return x.size(0) >= kGradientRows && few_rows_serve(x, weight, out_dtype);
}

void few_rows_forward(const at::Tensor& x, const at::Tensor& weight, bool unit, const at::Tensor& z,
                      const at::Tensor& alpha) {
  const int64_t rows = x.size(0), size = x.size(1), filters = weight.size(0);
  const float *in = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float *out = z.mutable_data_ptr<float>(), *a = alpha.mutable_data_ptr<float>();
  const bool by_gemm = rows >= kGemmRows && filters >= kGemmFilters;
  Scratch<float> columns(by_gemm ? rows * size : 0);
  if (by_gemm) transpose(in, size, rows, size, columns.data(), rows);
  each_block(filters, rows * size, [&](int64_t begin, int64_t end) {
    if (by_gemm) {
      float tile[kFilters * kMostRows];
      RowGemm::multiply(end - begin, rows, size, w + begin * size, columns.data(), tile);
      transpose(tile, rows, end - begin, rows, out + begin, filters);
    } else {
      products(in, rows, w, size, begin, end, out, filters);
    }
    filter_alpha(weight, unit, begin, end, a);
  });
}

at::Tensor few_rows_wgrad(const at::Tensor& u, const at::Tensor& x, const at::Tensor& weight, bool unit) {
  const int64_t rows = x.size(0), size = x.size(1), filters = weight.size(0);
  auto dw = empty(weight.sizes(), weight.options());
  const float *in = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  float* out = dw.mutable_data_ptr<float>();
  Scratch<float> columns(rows * filters);
  transpose(u.const_data_ptr<float>(), filters, rows, filters, columns.data(), rows);
  each_block(filters, (rows + 2) * size, [&](int64_t begin, int64_t end) {
    RowGemm::multiply(end - begin, size, rows, columns.data() + begin * rows, in, out + begin * size);
    if (unit) weight_norm_backward(w, out, size, begin, end);
  });
  return dw;
}

}  // namespace bcos::transform::cpu
