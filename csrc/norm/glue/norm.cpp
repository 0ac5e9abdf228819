#include "norm/glue/norm.h"

#include "common/plain_aten.h"
#include "norm/cpu/norm.h"

namespace bcos::norm::glue {
namespace {

const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

}  // namespace

Forward forward(const at::Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                const OptionalTensor& mean, const OptionalTensor& var, const Spec& spec) {
  const PlainAten guard;
  const Inputs inputs{x, weight, bias, mean, var};
  const Call call = make_call(kCpu, spec, inputs);
  return pack(cpu::forward(call, inputs), x);
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const OptionalTensor& weight,
                  const OptionalTensor& mean, const OptionalTensor& var, const at::Tensor& saved_mean,
                  const at::Tensor& saved_var, const OptionalTensor& dvar, const Spec& spec, bool frozen,
                  const std::vector<bool>& needs, bool as_map) {
  const PlainAten guard;
  const Inputs inputs{x, weight, std::nullopt, mean, var};
  Call call = make_call(kCpu, spec, inputs);
  call.frozen = frozen;
  auto saved = make_saved(call, inputs, grad, saved_mean, saved_var);
  set_joined(call, dvar, saved);
  return pack(cpu::backward(call, saved, make_needs(call, needs, as_map)));
}

Kernels kernels(const Spec& spec, bool detached) {
  const auto forwards = [spec](const Tensors& in) {
    const auto [y, mean, var] = forward(in[0], given(in[1]), given(in[2]), given(in[3]), given(in[4]), spec);
    return Tensors{y, mean, var};
  };
  const auto backwards = [spec, detached](const at::Tensor& grad, const Tensors& in, const Tensors& saved,
                                          const std::vector<bool>& needs, const at::Tensor&) {
    const auto [dx, dweight, dbias] =
        backward(grad, in[0], given(in[1]), given(in[3]), given(in[4]), saved[1], saved[2], std::nullopt,
                 spec, detached, {needs[0], needs[1], needs[2]}, false);
    auto gradients = or_undefined(dx, dweight, dbias, OptionalTensor(), OptionalTensor());
    for (size_t i : {1, 2})
      if (gradients[i].defined()) gradients[i] = gradients[i].to(in[i].scalar_type());
    return gradients;
  };
  return {forwards, backwards, {}, 5, 3, 3, false};
}

SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x,
                   const OptionalTensor& weight, const OptionalTensor& mean, const OptionalTensor& var,
                   const at::Tensor& saved_mean, const at::Tensor& saved_var, const Spec& spec,
                   const std::vector<bool>& needs) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(needs.size() == 2, "needs has ", needs.size(), " values, allowed: 2");
  const Inputs inputs{x, weight, std::nullopt, mean, var};
  Call call = make_call(kCpu, spec, inputs);
  call.frozen = true;
  check_exactly(x, "v", v, x.sizes(), x.scalar_type());
  const auto saved = make_saved(call, inputs, grad, saved_mean, saved_var);
  return pack(cpu::second(call, saved, v, {needs[0], needs[1] && !call.given}));
}

}  // namespace bcos::norm::glue
