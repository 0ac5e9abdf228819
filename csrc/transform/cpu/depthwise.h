// Depthwise convolution of channels_last images, stride 1 and "same" padding: norm, product and scale of a
// tile in one go.
#pragma once

#include "transform/tensors.h"

namespace bcos::transform::cpu {

// Whether these kernels serve a call. The vendor's convolution serves the others.
bool depthwise_serves(const Call& call);

// x is channels_last.
Outputs depthwise(const Call& call, const Inputs& inputs);

// Every tensor of saved is channels_last. At b = 2 sets small_norm where a patch has the norm of a zero
// patch.
Gradients depthwise_backward(const Call& call, const Saved& saved, const Needs& needs, bool& small_norm);

}  // namespace bcos::transform::cpu
