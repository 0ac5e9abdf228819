// Norms whose statistics are those of channels: over the batch, over all, or over groups of channels.
#pragma once

#include "norm/tensors.h"

namespace bcos::norm::cpu {

Outputs forward_over_channels(const Call& call, const Inputs& inputs);
Gradients backward_over_channels(const Call& call, const Saved& saved, const Needs& needs);
Second second_over_channels(const Call& call, const Saved& saved, const at::Tensor& v,
                            const SecondNeeds& needs);

}  // namespace bcos::norm::cpu
