// Linear layers of few rows: each filter is read once, for its product with all rows and what else it is
// needed for (fp32).
#pragma once

#include <ATen/core/Tensor.h>

namespace bcos::transform::cpu {

// Whether x has so few rows that the forward, or the gradient of the weight, is formed so.
bool few_rows_serve(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype);
bool few_rows_serve_wgrad(const at::Tensor& x, const at::Tensor& weight, at::ScalarType out_dtype);

// z = x w^T, and alpha of each filter
void few_rows_forward(const at::Tensor& x, const at::Tensor& weight, bool unit, const at::Tensor& z,
                      const at::Tensor& alpha);

// The gradient of the weight from the gradient u of the products
at::Tensor few_rows_wgrad(const at::Tensor& u, const at::Tensor& x, const at::Tensor& weight, bool unit);

}  // namespace bcos::transform::cpu
