// B-cos convolution on the CPU: the vendor's convolution and one fused pass beside it.
#pragma once

#include "transform/tensors.h"

namespace bcos::transform::cpu {

// x [N, C, H, W], weight [O*M, C/G, kh, kw], bias [O*M] -> y [N, O, OH, OW], n [N, G, OH, OW], l and winner
// as y; with a third axis x [N, C, D, H, W] and all others alike
Outputs convolution(const Call& call, const Inputs& inputs);

Gradients convolution_backward(const Call& call, const Saved& saved, const Needs& needs);

// v: the gradient of the gradient of x.
Second convolution_second(const Call& call, const Saved& saved, const at::Tensor& v,
                          const SecondNeeds& needs);

}  // namespace bcos::transform::cpu
