// The transform on a GPU, as Python calls it: checks, then the candidate of the given name.
#pragma once

#include "transform/glue/arguments.h"

namespace bcos::transform::glue::cuda {

// x [M, K] or [N, C, H, W] -> y, n, l, winner; those that a backward does not need are empty. `large`: the
// larger tile of the products; `tf32`: products of fp32 may round their operands.
Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const Spec& spec, const std::string& candidate, bool large,
                bool tf32);

// -> dx, dweight, dbias, db, none where not needed. `frozen`: the scale is a constant of this derivative.
// `map`: that of Saved, for a candidate that takes it.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const OptionalTensor& dn, const OptionalTensor& dl,
                  const OptionalTensor& map, const Spec& spec, bool frozen, const std::vector<bool>& needs,
                  const std::string& candidate, bool large, bool tf32);

// The gradients of <v, dx>, where dx is what the backward returns for x -> those of grad, x, weight, n and l.
// As on the CPU.
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                   const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                   const at::Tensor& winner, const Spec& spec, bool frozen, bool detached,
                   const std::vector<bool>& needs, const std::string& candidate, bool tf32);

}  // namespace bcos::transform::glue::cuda
