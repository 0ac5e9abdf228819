// Dynamic alignment units on a GPU, as Python calls them.
#pragma once

#include "dynamic_alignment/glue/arguments.h"

namespace bcos::dynamic_alignment::glue::cuda {

// x [N, C, H, W], h [N, R, OH, OW], weight [P*O, R], bias [P*O] -> y, norm, l; l is empty with detach. `tf32`
// lets products of fp32 round their operands.
Forward forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                const OptionalTensor& bias, const Spec& spec, bool tf32);

// As on the CPU. At most `most` gradients of dynamic weights lie in memory at once, unless those of 64 pixels
// are more.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& norm, const at::Tensor& l, const Spec& spec,
                  const std::vector<bool>& needs, bool tf32, int64_t most);

}  // namespace bcos::dynamic_alignment::glue::cuda
