// Weights as the products take them, and the gradient through the division by their norm.
#pragma once

#include "host/cuda/problem.h"

namespace bcos::host::gpu {

struct Weights {
  at::Tensor source;   // the given weight, OIHW or OHWI without gaps
  at::Tensor operand;  // of the products: OHWI, or OIHW beside planes
  at::Tensor alpha;    // [F] fp32, a factor 1/|w| that the operand lacks; undefined where it lacks none
  at::Tensor inverse;  // [F] fp32 1/|w| of unit weights, else undefined
};

// `dtype` is that of the products, `biased` whether a bias or its gradient takes part.
Weights prepare(const Problem& p, const at::Tensor& weight, at::ScalarType dtype, bool biased);

// dw, as the weight, of shares [splits, F, ...] of the operand's gradient, each in the operand's order; the
// first is overwritten.
at::Tensor weight_gradient(const Problem& p, const Weights& weights, const at::Tensor& partial);

}  // namespace bcos::host::gpu
