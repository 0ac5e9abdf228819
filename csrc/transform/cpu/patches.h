// Convolutions as linear layers of their patches (fp32, and forward bf16): a patch is a few long runs of
// values in channels_last memory, and what follows a product finds it in cache.
#pragma once

#include "common/cpu/tiling.h"
#include "transform/tensors.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

// Whether patches_dgrad serves a call, and whether patches_forward does. Where patches overlap, to copy them
// costs more than the vendor's convolution and two passes after it. The vendor's dgrad is slow where channels
// are few.
bool patches_serve(const Call& call, const at::Tensor& x, const at::Tensor& weight, bool channels_last);
bool patches_serve_forward(const Call& call, const at::Tensor& x, const at::Tensor& weight,
                           bool channels_last);

// For x and weight that are channels_last
Outputs patches_forward(const Call& call, const Inputs& inputs, const Tiling& outputs);

// The gradient of x in the product of x and weight, from u; all of them channels_last
at::Tensor patches_dgrad(const Call& call, const at::Tensor& u, const at::Tensor& x,
                         const at::Tensor& weight);

}  // namespace bcos::transform::cpu
