// The norm on a GPU, as Python calls it.
#pragma once

#include "norm/glue/arguments.h"

namespace bcos::norm::glue::cuda {

// x [N, C, positions ...] -> y, mean, var; the statistics are empty where they were given.
Forward forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const OptionalTensor& mean, const OptionalTensor& var, const Spec& spec);

// -> dx, dweight, dbias, none where not needed; the latter two in the type of sums. `mean` and `var` are the
// given statistics, `saved_mean` and `saved_var` those that the forward returned. `frozen`: the variance is a
// constant of this derivative.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                  const OptionalTensor& mean, const OptionalTensor& var, const at::Tensor& saved_mean,
                  const at::Tensor& saved_var, const OptionalTensor& dvar, const Spec& spec, bool frozen,
                  const std::vector<bool>& needs, bool as_map);

// The gradients of <v, dx>, where dx is what a frozen backward returns for x -> those of grad, weight in
// the type of sums and var. As on the CPU.
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x,
                   const OptionalTensor& weight, const OptionalTensor& mean, const OptionalTensor& var,
                   const at::Tensor& saved_mean, const at::Tensor& saved_var, const Spec& spec,
                   const std::vector<bool>& needs);

}  // namespace bcos::norm::glue::cuda
