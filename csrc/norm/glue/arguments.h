// The border to Python: arguments are checked and become a Call and its tensors, results become tuples.
#pragma once

#include <tuple>

#include "norm/tensors.h"

namespace bcos::norm::glue {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // y, mean, var
// dx or its map, dweight, dbias
using Backward = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor>;
using SecondOrder = std::tuple<at::Tensor, OptionalTensor, OptionalTensor>;  // gradients of grad, weight, var

// Checks the inputs of a call.
Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs);

// The tensors of a backward, with the statistics that the forward used.
Saved make_saved(const Call& call, const Inputs& inputs, const at::Tensor& grad, const at::Tensor& mean,
                 const at::Tensor& var);

// Adds what a second derivative returned for var, if it did.
void set_joined(const Call& call, const OptionalTensor& dvar, Saved& saved);

// `as_map`: dx is asked for as its map.
Needs make_needs(const Call& call, const std::vector<bool>& needs, bool as_map);

// Statistics that were given become empty tensors: the schema of an operator has no optional outputs.
Forward pack(const Outputs& outputs, const at::Tensor& x);

Backward pack(Gradients&& gradients);
SecondOrder pack(const Second& second);

}  // namespace bcos::norm::glue
