#include "dynamic_alignment/glue/dynamic_alignment.h"

#include "common/plain_aten.h"
#include "dynamic_alignment/cpu/dynamic_alignment.h"

namespace bcos::dynamic_alignment::glue {
namespace {

const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

}  // namespace

Forward forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                const OptionalTensor& bias, const Spec& spec) {
  const PlainAten guard;
  const Inputs inputs{x, h, weight, bias};
  return pack(cpu::forward(make_call(kCpu, spec, inputs), inputs));
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& norm, const at::Tensor& l, const Spec& spec,
                  const std::vector<bool>& needs) {
  const PlainAten guard;
  const Inputs inputs{x, h, weight, bias};
  const Call call = make_call(kCpu, spec, inputs);
  const Needs wanted = make_needs(call, inputs, {grad, norm, l}, needs);
  return pack(cpu::backward(call, inputs, {grad, norm.contiguous(), l.contiguous()}, wanted));
}

}  // namespace bcos::dynamic_alignment::glue
