// The border to Python: arguments are checked and become a Call and its tensors, results become tuples.
#pragma once

#include <tuple>

#include "dynamic_alignment/tensors.h"

namespace bcos::dynamic_alignment::glue {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y, norm, l
// dx, dh, dweight, dbias
using Backward = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

// Checks the inputs of a call.
Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs);

// What is asked of a backward. Checks its gradient, which may be of several rows of the dynamic linear map
// where that of x alone is needed, and what the forward returned.
Needs make_needs(const Call& call, const Inputs& inputs, const Saved& saved, const std::vector<bool>& needs);

Forward pack(const Outputs& outputs);
Backward pack(const Gradients& gradients);

}  // namespace bcos::dynamic_alignment::glue
