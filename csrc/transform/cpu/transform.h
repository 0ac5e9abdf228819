// The transform on the CPU: a linear layer or a convolution, as the spec says.
#pragma once

#include "transform/tensors.h"

namespace bcos::transform::cpu {

Outputs forward(const Call& call, const Inputs& inputs);

Gradients backward(const Call& call, const Saved& saved, const Needs& needs);

// v: the gradient of the gradient of x.
Second second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs);

}  // namespace bcos::transform::cpu
