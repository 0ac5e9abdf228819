// The products of cuDNN and cuBLAS, through torch.
#pragma once

#include <tuple>

#include "transform/glue/cuda/call.h"

namespace bcos::transform::glue::cuda {

// z = x * w
at::Tensor vendor_product(const DeviceCall& call, const at::Tensor& x, const at::Tensor& operand);

// dx and the gradient of the operand, undefined where not needed, from u = dL/dz. Of several rows only dx is
// needed, and then a product reads nothing of x but its sizes.
std::tuple<at::Tensor, at::Tensor> vendor_gradients(const DeviceCall& call, const at::Tensor& u,
                                                    const at::Tensor& x, const at::Tensor& operand,
                                                    bool needs_x, bool needs_weight);

}  // namespace bcos::transform::glue::cuda
