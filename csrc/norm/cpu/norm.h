// A norm on the CPU.
#pragma once

#include "norm/tensors.h"

namespace bcos::norm::cpu {

Outputs forward(const Call& call, const Inputs& inputs);
Gradients backward(const Call& call, const Saved& saved, const Needs& needs);

}  // namespace bcos::norm::cpu
