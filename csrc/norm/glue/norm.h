// The norm as Python calls it: arguments are checked, and the kernels of a backend are started.
#pragma once

#include "common/autograd/recorded.h"
#include "common/plain_aten.h"
#include "norm/glue/arguments.h"

namespace bcos::norm::glue {

struct Backend {
  Takes takes;
  Outputs (*forward)(const Call& call, const Inputs& inputs);
  Gradients (*backward)(const Call& call, const Saved& saved, const Needs& needs);
  Second (*second)(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs);
};

extern const Backend kCpu;

// x [N, C, positions ...] -> y, mean, var; the statistics are empty where they were given.
template <const Backend& backend>
Forward forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const OptionalTensor& mean, const OptionalTensor& var, const Spec& spec) {
  const PlainAten guard;
  const Inputs inputs{x, weight, bias, mean, var};
  return pack(backend.forward(make_call(backend.takes, spec, inputs), inputs), x);
}

// -> dx, dweight, dbias, none where not needed; the latter two in the type of sums. `mean` and `var` are the
// given statistics, `saved_mean` and `saved_var` those that the forward returned. `frozen`: the variance is a
// constant of this derivative. `as_map`: in place of dx, the map of Gradients.
template <const Backend& backend>
Backward backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                  const OptionalTensor& mean, const OptionalTensor& var, const at::Tensor& saved_mean,
                  const at::Tensor& saved_var, const OptionalTensor& dvar, const Spec& spec, bool frozen,
                  const std::vector<bool>& needs, bool as_map) {
  const PlainAten guard;
  const Inputs inputs{x, weight, std::nullopt, mean, var};
  Call call = make_call(backend.takes, spec, inputs);
  call.frozen = frozen;
  auto saved = make_saved(call, inputs, grad, saved_mean, saved_var);
  set_joined(call, dvar, saved);
  return pack(backend.backward(call, saved, make_needs(call, needs, as_map)));
}

// The gradients of <v, dx>, where dx is what a frozen backward returns for x -> those of grad, weight and
// var, which a backward takes as dvar. `needs` is for weight and var.
template <const Backend& backend>
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x,
                   const OptionalTensor& weight, const OptionalTensor& mean, const OptionalTensor& var,
                   const at::Tensor& saved_mean, const at::Tensor& saved_var, const Spec& spec,
                   const std::vector<bool>& needs) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(needs.size() == 2, "needs has ", needs.size(), " values, allowed: 2");
  const Inputs inputs{x, weight, std::nullopt, mean, var};
  Call call = make_call(backend.takes, spec, inputs);
  call.frozen = true;
  check_exactly(x, "v", v, x.sizes(), x.scalar_type());
  const auto saved = make_saved(call, inputs, grad, saved_mean, saved_var);
  return pack(backend.second(call, saved, v, {needs[0], needs[1] && !call.given}));
}

// Both directions on the CPU as autograd's graph uses them. `detached`: the variance is a constant of every
// derivative.
Kernels kernels(const Spec& spec, bool detached);

}  // namespace bcos::norm::glue
