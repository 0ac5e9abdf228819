// Depthwise convolution of stride 1 and "same" padding: norm, product and scale of a row in one go.
#pragma once

#include "transform/tensors.h"

namespace bcos::transform::cpu {

// Whether these kernels serve a call. The vendor's convolution serves the others.
bool depthwise_serves(const Call& call);

// x is channels_last or contiguous, and so are the outputs.
Outputs depthwise(const Call& call, const Inputs& inputs, bool channels_last);

// Every tensor of saved has the memory format of the others. At b = 2 sets small_norm where a patch has the
// norm of a zero patch.
Gradients depthwise_backward(const Call& call, const Saved& saved, const Needs& needs, bool channels_last,
                             bool& small_norm);

}  // namespace bcos::transform::cpu
