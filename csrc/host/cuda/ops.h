// The entry points of the CUDA kernels, as Python calls them.
#pragma once

#include <tuple>

#include "host/ops.h"

namespace bcos::host::gpu {

using GeometryArguments = std::optional<std::tuple<Ints, Ints, Ints, int64_t>>;  // none for a linear layer
using FormulaArguments = std::tuple<int64_t, double, bool, double, double, double, bool>;
using WayArguments = std::tuple<int64_t, bool, bool>;  // of gpu::Way

// x [M, K] without a geometry, else [N, C, H, W]
Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const GeometryArguments& geometry, const FormulaArguments& formula,
                at::ScalarType out_dtype, const WayArguments& way);

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const GeometryArguments& geometry,
                  const FormulaArguments& formula, bool explain, const std::vector<bool>& needs,
                  const WayArguments& way);

}  // namespace bcos::host::gpu
