// A norm on the CPU.
#pragma once

#include "norm/tensors.h"

namespace bcos::norm::cpu {

Outputs forward(const Call& call, const Inputs& inputs);
Gradients backward(const Call& call, const Saved& saved, const Needs& needs);

// Of a backward in an explanation mode; v is the gradient of the gradient of x.
Second second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs);

}  // namespace bcos::norm::cpu
