// The norm on the CPU, as Python calls it.
#pragma once

#include "common/autograd/recorded.h"
#include "norm/glue/arguments.h"

namespace bcos::norm::glue {

// x [N, C, positions ...] -> y, mean, var; the statistics are empty where they were given.
Forward forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const OptionalTensor& mean, const OptionalTensor& var, const Spec& spec);

// -> dx, dweight, dbias, none where not needed; the latter two in the type of sums. `mean` and `var` are the
// given statistics, `saved_mean` and `saved_var` those that the forward returned. `frozen`: the variance is a
// constant of this derivative. `as_map`: in place of dx, the map of Gradients.
Backward backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                  const OptionalTensor& mean, const OptionalTensor& var, const at::Tensor& saved_mean,
                  const at::Tensor& saved_var, const OptionalTensor& dvar, const Spec& spec, bool frozen,
                  const std::vector<bool>& needs, bool as_map);

// Both directions as autograd's graph uses them. `detached`: the variance is a constant of every derivative.
Kernels kernels(const Spec& spec, bool detached);

// The gradients of <v, dx>, where dx is what a frozen backward returns for x -> those of grad, weight and
// var, which a backward takes as dvar. `needs` is for weight and var.
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x,
                   const OptionalTensor& weight, const OptionalTensor& mean, const OptionalTensor& var,
                   const at::Tensor& saved_mean, const at::Tensor& saved_var, const Spec& spec,
                   const std::vector<bool>& needs);

}  // namespace bcos::norm::glue
