// The border to Python: arguments are checked and become a Call and its tensors, results become tuples.
#pragma once

#include <tuple>

#include "common/plain_aten.h"
#include "transform/tensors.h"

namespace bcos::transform::glue {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // y, n, l, winner
using Backward =
    std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;  // dx, dweight, dbias, db
// the gradients of grad, x, weight, n and l
using SecondOrder = std::tuple<at::Tensor, OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

// Checks the inputs of a call and reads b where it is a tensor on the CPU.
Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs);

// How many gradients of each image a backward is given: several are rows of the dynamic linear map, which
// share what the forward saved. That needs a frozen scale, and dx alone.
int64_t count_rows(const Call& call, const at::Tensor& grad, const Needs& needs);

// The tensors of a backward, without those of y, n, l and winner that the call does not save.
Saved make_saved(const Call& call, const Inputs& inputs, const at::Tensor& grad, const OptionalTensor& y,
                 const at::Tensor& n, const at::Tensor& l, const at::Tensor& winner);

// Adds what a second derivative returned for n and l: both or none.
void set_joined(const Call& call, const OptionalTensor& dn, const OptionalTensor& dl, Saved& saved);

// Adds the map of the gradient, where there is one.
void set_map(const Call& call, const OptionalTensor& map, Saved& saved);

Needs make_needs(const std::vector<bool>& needs, const OptionalTensor& b);

// An output that the call does not save becomes an empty tensor: the schema of an operator has no optional
// outputs.
Forward pack(const Outputs& outputs, const at::Tensor& x);
Backward pack(Gradients&& gradients);
SecondOrder pack(const Second& second);

}  // namespace bcos::transform::glue
