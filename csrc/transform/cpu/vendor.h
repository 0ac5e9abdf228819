// The vendor's products, through torch.
#pragma once

#include <tuple>

#include "transform/tensors.h"

namespace bcos::transform::cpu {

// x * w, and the bias where it is given
at::Tensor vendor_product(const Call& call, const at::Tensor& x, const at::Tensor& weight,
                          const OptionalTensor& bias = {});

// dx and the gradient of the weight of a product, undefined where not needed, from u = dL/dz
std::tuple<at::Tensor, at::Tensor> vendor_gradients(const Call& call, const at::Tensor& u,
                                                    const at::Tensor& x, const at::Tensor& weight,
                                                    bool needs_x, bool needs_weight);

}  // namespace bcos::transform::cpu
