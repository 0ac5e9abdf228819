#include "norm/glue/norm.h"

#include "norm/cpu/norm.h"

namespace bcos::norm::glue {
namespace {

Outputs cpu_forward(const Call& call, const Inputs& inputs) {
  return (call.at_positions() ? cpu::forward_over_positions : cpu::forward_over_channels)(call, inputs);
}

Gradients cpu_backward(const Call& call, const Saved& saved, const Needs& needs) {
  return (call.at_positions() ? cpu::backward_over_positions : cpu::backward_over_channels)(call, saved,
                                                                                            needs);
}

Second cpu_second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs) {
  return (call.at_positions() ? cpu::second_over_positions : cpu::second_over_channels)(call, saved, v,
                                                                                        needs);
}

}  // namespace

const Backend kCpu{
    {c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}}, cpu_forward, cpu_backward, cpu_second};

Kernels kernels(const Spec& spec, bool detached) {
  const auto forwards = [spec](const Tensors& in) {
    const auto [y, mean, var] =
        forward<kCpu>(in[0], given(in[1]), given(in[2]), given(in[3]), given(in[4]), spec);
    return Tensors{y, mean, var};
  };
  const auto backwards = [spec, detached](const at::Tensor& grad, const Tensors& in, const Tensors& saved,
                                          const std::vector<bool>& needs, const at::Tensor&) {
    const auto [dx, dweight, dbias] =
        backward<kCpu>(grad, in[0], given(in[1]), given(in[3]), given(in[4]), saved[1], saved[2],
                       std::nullopt, spec, detached, {needs[0], needs[1], needs[2]}, false);
    auto gradients = or_undefined(dx, dweight, dbias, OptionalTensor(), OptionalTensor());
    for (size_t i : {1, 2})
      if (gradients[i].defined()) gradients[i] = gradients[i].to(in[i].scalar_type());
    return gradients;
  };
  return {forwards, backwards, {}, 5, 3, 3, false};
}

}  // namespace bcos::norm::glue
