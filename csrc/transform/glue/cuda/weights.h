// Weights as the products take them, and the gradient through the division by their norm.
#pragma once

#include "transform/glue/cuda/call.h"

namespace bcos::transform::glue::cuda {

struct Weights {
  at::Tensor source;   // the given weight, OIHW or OHWI without gaps
  at::Tensor operand;  // of the products: OHWI, or OIHW beside planes
  at::Tensor alpha;    // [F], a factor 1/|w| that the operand lacks; undefined where it lacks none
  at::Tensor inverse;  // [F] 1/|w| of unit weights, else undefined
};

// Whether the products take a unit weight as it is, and alpha beside it. `biased`: a bias or its gradient
// takes part.
bool takes_raw(const DeviceCall& call, at::ScalarType weight, bool biased);

// The weights of a call, with new tensors for what a kernel has to form. `biased`: a bias or its gradient
// takes part.
Weights new_weights(const DeviceCall& call, const at::Tensor& weight, bool biased);

// The arguments of the kernel that forms them: of no filter (F = 0) where it has nothing to form.
template <typename A>
kernels::WeightNormFwd<A> weight_norm(const DeviceCall& call, const Weights& weights);

// Starts that kernel.
void form(const DeviceCall& call, const Weights& weights);

// The weights of a call, for which that kernel was started.
Weights prepare(const DeviceCall& call, const at::Tensor& weight, bool biased);

// dw, as the weight, of shares [splits, F, ...] of the operand's gradient, each in the operand's order; the
// first is overwritten.
at::Tensor weight_gradient(const DeviceCall& call, const Weights& weights, const at::Tensor& partial);

}  // namespace bcos::transform::glue::cuda
