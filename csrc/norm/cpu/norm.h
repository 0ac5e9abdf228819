// A norm on the CPU. Its statistics are those of channels, over the batch, over all or over groups of
// channels, or those of the channels at a position.
#pragma once

#include "norm/tensors.h"

namespace bcos::norm::cpu {

Outputs forward_over_channels(const Call& call, const Inputs& inputs);
Outputs forward_over_positions(const Call& call, const Inputs& inputs);
Gradients backward_over_channels(const Call& call, const Saved& saved, const Needs& needs);
Gradients backward_over_positions(const Call& call, const Saved& saved, const Needs& needs);

// Of a backward in an explanation mode; v is the gradient of the gradient of x.
Second second_over_channels(const Call& call, const Saved& saved, const at::Tensor& v,
                            const SecondNeeds& needs);
Second second_over_positions(const Call& call, const Saved& saved, const at::Tensor& v,
                             const SecondNeeds& needs);

}  // namespace bcos::norm::cpu
