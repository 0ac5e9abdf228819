// What is started for one call: the weights made ready, then the chosen candidate, forward or backward.
#pragma once

#include "host/cuda/problem.h"

namespace bcos::host::gpu {

// x [N, C, H, W] -> y, n, l, winner in p.format(); undefined where the formula has none
Outputs forward(const Problem& p, const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& b,
                at::ScalarType out_dtype, const Way& way);

// The gradients that are needed; p.formula.explain freezes the scale
Gradients backward(const Problem& p, const Saved& saved, const Needs& needs, const Way& way);

}  // namespace bcos::host::gpu
