#include "dynamic_alignment/glue/dynamic_alignment.h"

#include "common/dtype.h"
#include "common/plain_aten.h"
#include "dynamic_alignment/cpu/dynamic_alignment.h"

namespace bcos::dynamic_alignment::glue {
namespace {

const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

Call make_call(const Inputs& inputs, const Spec& spec) {
  const auto& [x, h, weight, bias] = inputs;
  check_input(kCpu, "x", x, 4);
  check_input(kCpu, "h", h, 4);
  check_input(kCpu, "weight", weight, 2);
  const Call call(spec, x, h, weight);
  check_exactly(x, "h", h, {call.images, call.rank, call.out[0], call.out[1]}, x.scalar_type());
  check_exactly(x, "weight", weight, {call.patch() * call.outputs, call.rank}, x.scalar_type());
  if (bias) check_exactly(x, "bias", *bias, {weight.size(0)}, x.scalar_type());
  return call;
}

}  // namespace

Forward forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                const OptionalTensor& bias, const Spec& spec) {
  const PlainAten guard;
  const Inputs inputs{x, h, weight, bias};
  const auto out = cpu::forward(make_call(inputs, spec), inputs);
  return {out.y, out.norm, out.l};
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& norm, const at::Tensor& l, const Spec& spec,
                  const std::vector<bool>& needs) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(needs.size() == 4, "needs has ", needs.size(), " values, allowed: 4");
  const Needs wanted{needs[0], needs[1], needs[2], needs[3] && bias};
  const Inputs inputs{x, h, weight, bias};
  const Call call = make_call(inputs, spec);
  const int64_t rows = call.images && grad.dim() ? grad.size(0) / call.images : 1;
  check_exactly(x, "grad", grad, {rows * call.images, call.outputs, call.out[0], call.out[1]},
                x.scalar_type());
  TORCH_CHECK_VALUE(rows == 1 || !wanted.training(), "grad has ", grad.size(0),
                    " images, allowed: ", call.images, " where other gradients than that of x are needed");
  TORCH_CHECK_VALUE(!spec.detach || !wanted.training(),
                    "needs asks for more than the gradient of x, allowed: that alone with detach");
  const auto sums = accumulate_type(x.scalar_type());
  check_exactly(x, "norm", norm, {call.outputs, call.pixels()}, sums);
  if (wanted.training()) check_exactly(x, "l", l, {call.outputs, call.pixels()}, sums);
  const auto found = cpu::backward(call, inputs, {grad, norm.contiguous(), l.contiguous()}, wanted);
  return {found.x, found.h, found.weight, found.bias};
}

}  // namespace bcos::dynamic_alignment::glue
