#include "dynamic_alignment/glue/arguments.h"

#include "common/dtype.h"

namespace bcos::dynamic_alignment::glue {

Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs) {
  const auto& [x, h, weight, bias] = inputs;
  check_input(takes, "x", x, 4);
  check_input(takes, "h", h, 4);
  check_input(takes, "weight", weight, 2);
  const Call call(spec, x, h, weight);
  check_exactly(x, "h", h, {call.images, call.rank, call.out[0], call.out[1]}, x.scalar_type());
  check_exactly(x, "weight", weight, {call.patch() * call.outputs, call.rank}, x.scalar_type());
  if (bias) check_exactly(x, "bias", *bias, {weight.size(0)}, x.scalar_type());
  return call;
}

Needs make_needs(const Call& call, const Inputs& inputs, const Saved& saved, const std::vector<bool>& needs) {
  TORCH_CHECK_VALUE(needs.size() == 4, "needs has ", needs.size(), " values, allowed: 4");
  const Needs wanted{needs[0], needs[1], needs[2], needs[3] && inputs.bias};
  const auto& [grad, norm, l] = saved;
  const auto& x = inputs.x;
  const int64_t rows = call.images && grad.dim() ? grad.size(0) / call.images : 1;
  check_exactly(x, "grad", grad, {rows * call.images, call.outputs, call.out[0], call.out[1]},
                x.scalar_type());
  TORCH_CHECK_VALUE(rows == 1 || !wanted.training(), "grad has ", grad.size(0),
                    " images, allowed: ", call.images, " where other gradients than that of x are needed");
  TORCH_CHECK_VALUE(!call.spec.detach || !wanted.training(),
                    "needs asks for more than the gradient of x, allowed: that alone with detach");
  const auto sums = accumulate_type(x.scalar_type());
  check_exactly(x, "norm", norm, {call.outputs, call.pixels()}, sums);
  if (wanted.training()) check_exactly(x, "l", l, {call.outputs, call.pixels()}, sums);
  return wanted;
}

Forward pack(const Outputs& outputs) {
  return {outputs.y, outputs.norm, outputs.l};
}

Backward pack(const Gradients& gradients) {
  return {gradients.x, gradients.h, gradients.weight, gradients.bias};
}

}  // namespace bcos::dynamic_alignment::glue
