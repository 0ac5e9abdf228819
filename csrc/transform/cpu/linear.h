// B-cos linear layer on the CPU.
#pragma once

#include "transform/cpu/steps.h"

namespace bcos::transform::cpu {

// x [P, K], weight [O*M, K], bias [O*M] -> y [P, O], n [P, 1], l and winner as y
Outputs linear(const Call& call, const Inputs& inputs);

Gradients linear_backward(const Call& call, const Saved& saved, const Needs& needs);

// The steps of a forward and a backward on rows of pixels, tile by tile, where RowGemm serves. The backward
// is start_backward with dx beside it, and with the weight's gradient where that pays; u is kept for it where
// it does not.
Outputs tiled_forward(const Call& call, const Inputs& inputs, const Tiling& outputs);
BackwardPass tiled_backward(const Call& call, const Saved& saved, at::MemoryFormat format,
                            const Tiling& outputs, const Needs& needs, Gradients& gradients);

// v: the gradient of the gradient of x.
Second linear_second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs);

}  // namespace bcos::transform::cpu
