// The transform on the CPU, as Python calls it: a linear layer or a convolution, as the spec says.
#pragma once

#include "common/autograd/recorded.h"
#include "transform/glue/arguments.h"

namespace bcos::transform::glue {

// x [M, K] or [N, C, H, W] -> y, n, l, winner; those that a backward does not need are empty. y, l and winner
// are [M, O] or [N, O, OH, OW], n is [M, 1] or [N, G, OH, OW]. l is there for b other than 1 and 2 and for b
// as a tensor, and winner (uint8) for max_out > 1.
Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const Spec& spec);

// -> dx, dweight, dbias, db, none where not needed. `frozen`: the scale is a constant of this derivative.
// `map`: that of Saved, where grad is not yet the gradient of y.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const OptionalTensor& dn, const OptionalTensor& dl,
                  const OptionalTensor& map, const Spec& spec, bool frozen, const std::vector<bool>& needs);

// The gradients of <v, dx>, where dx is what the backward returns for x -> those of grad, x, weight, n and l.
// A backward takes the last two as dn and dl; they are none where the scale is `detached`, which means a
// constant of every derivative. `needs` is for x and weight.
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                   const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                   const at::Tensor& winner, const Spec& spec, bool frozen, bool detached,
                   const std::vector<bool>& needs);

// Both directions as autograd's graph uses them; `detached` as above.
Kernels kernels(const Spec& spec, bool saves_output, bool detached);

// The norm of every patch: x [N, C, H, W], kernel (kh, kw) -> n [N, G, OH, OW].
at::Tensor patch_norm(const at::Tensor& x, const Ints& kernel, const Spec& spec);

// The norm of every filter: weight [filters, ...] -> [filters].
at::Tensor weight_norm(const at::Tensor& weight);

}  // namespace bcos::transform::glue
