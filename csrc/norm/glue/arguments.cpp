#include "norm/glue/arguments.h"

#include <ATen/ops/empty.h>

#include "common/autograd/recorded.h"
#include "common/dtype.h"

namespace bcos::norm::glue {
namespace {

void check_per_channel(const at::Tensor& x, const char* name, const OptionalTensor& t) {
  if (!t) return;
  check_beside(x, name, *t);
  TORCH_CHECK_TYPE(at::isFloatingType(t->scalar_type()), name, " has dtype ", t->scalar_type(),
                   ", allowed: a floating point dtype");
  TORCH_CHECK_VALUE(t->dim() == 1 && t->size(0) == x.size(1), name, " has shape ", t->sizes(), ", allowed: [",
                    x.size(1), "]");
}

}  // namespace

Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs) {
  const auto& [x, weight, bias, mean, var] = inputs;
  TORCH_CHECK_VALUE(x.defined() && x.dim() >= 2, "x has ", x.defined() ? x.dim() : 0,
                    " dimensions, allowed: 2 or more");
  check_kind(takes, "x", x, x.dim());
  check_per_channel(x, "weight", weight);
  check_per_channel(x, "bias", bias);
  check_per_channel(x, "mean", mean);
  check_per_channel(x, "var", var);
  TORCH_CHECK_VALUE(mean.has_value() == (var.has_value() && spec.centered),
                    "mean and var are given, allowed: both where centered, else var alone");
  check_out_dtype(x, spec.out_dtype);
  return Call(spec, x, var.has_value());
}

Saved make_saved(const Call& call, const Inputs& inputs, const at::Tensor& grad, const at::Tensor& mean,
                 const at::Tensor& var) {
  const auto& x = inputs.x;
  const auto sums = accumulate_type(call.dtype);
  check_exactly(x, "grad", grad, x.sizes(), call.spec.out_dtype);
  Saved saved{grad, x, inputs.weight, {}, {}};
  if (call.given) {
    if (inputs.mean) saved.mean = inputs.mean->to(sums).contiguous();
    saved.var = inputs.var->to(sums).contiguous();
  } else {
    check_exactly(x, "mean", mean, call.statistics_shape, sums);
    check_exactly(x, "var", var, call.statistics_shape, sums);
    saved.mean = mean.contiguous();
    saved.var = var.contiguous();
  }
  return saved;
}

void set_joined(const Call& call, const OptionalTensor& dvar, Saved& saved) {
  if (!dvar) return;
  TORCH_CHECK_VALUE(!call.given, "dvar is a tensor, allowed: None, because given statistics are constants");
  check_exactly(saved.x, "dvar", *dvar, call.statistics_shape, accumulate_type(call.dtype));
  saved.dvar = dvar->contiguous();
}

Needs make_needs(const Call& call, const std::vector<bool>& needs, bool as_map) {
  TORCH_CHECK_VALUE(needs.size() == 3, "needs has ", needs.size(), " values, allowed: 3");
  TORCH_CHECK_VALUE(!as_map || call.has_map(), "as_map is true, allowed: false, because over='",
                    call.spec.over_name(), "' has no constants of a channel that all images share");
  return {needs[0] && !as_map, needs[1], needs[2], needs[0] && as_map};
}

Forward pack(const Outputs& outputs, const at::Tensor& x) {
  const auto or_empty = [&](const at::Tensor& t) {
    return t.defined() ? t : at::empty({0}, x.options().dtype(accumulate_type(x.scalar_type())));
  };
  return {outputs.y, or_empty(outputs.mean), or_empty(outputs.var)};
}

Backward pack(Gradients&& gradients) {
  return {gradients.map ? gradients.map : gradients.x, gradients.weight, gradients.bias};
}

SecondOrder pack(const Second& second) {
  return {second.grad, second.weight, given(second.var)};
}

}  // namespace bcos::norm::glue
