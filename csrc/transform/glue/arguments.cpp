#include "transform/glue/arguments.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "common/autograd/recorded.h"
#include "common/dtype.h"

namespace bcos::transform::glue {
namespace {

void check_weight(const at::Tensor& x, const at::Tensor& weight) {
  check_beside(x, "weight", weight);
  const auto dtype = weight.scalar_type();
  TORCH_CHECK_TYPE(dtype == x.scalar_type() || (dtype == at::kFloat && is_half(x.scalar_type())),
                   "weight has dtype ", dtype, ", allowed: x's dtype ", x.scalar_type(),
                   ", or float beside an x of a half type");
  TORCH_CHECK_VALUE(weight.dim() == x.dim(), "weight has ", weight.dim(), " dimensions, allowed: ", x.dim());
  check_not_empty("weight", weight);
}

void check_bias(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  check_beside(x, "bias", bias);
  const auto dtype = bias.scalar_type();
  TORCH_CHECK_TYPE(dtype == x.scalar_type() || dtype == weight.scalar_type(), "bias has dtype ", dtype,
                   ", allowed: ", x.scalar_type(), " or ", weight.scalar_type());
  TORCH_CHECK_VALUE(bias.dim() == 1 && bias.size(0) == weight.size(0), "bias has shape ", bias.sizes(),
                    ", allowed: [", weight.size(0), "]");
}

void check_b(const at::Tensor& x, const Spec& spec, const OptionalTensor& b) {
  TORCH_CHECK_VALUE(!spec.b || !b, "b is a tensor, allowed: None, because the spec has b=", *spec.b);
  TORCH_CHECK_VALUE(spec.b || b, "b is None, allowed: a tensor of one value, because the spec has b=None");
  if (!b) return;
  check_beside(x, "b", *b);
  TORCH_CHECK_TYPE(at::isFloatingType(b->scalar_type()), "b has dtype ", b->scalar_type(),
                   ", allowed: a floating point dtype");
  TORCH_CHECK_VALUE(b->numel() == 1, "b has ", b->numel(), " elements, allowed: 1");
}

}  // namespace

Call make_call(const Takes& takes, const Spec& spec, const Inputs& inputs) {
  const auto& [x, weight, bias, b] = inputs;
  check_input(takes, "x", x, 2 + int64_t(spec.stride.size()));
  check_weight(x, weight);
  if (bias) check_bias(x, weight, *bias);
  check_b(x, spec, b);
  check_out_dtype(x, spec.out_dtype);
  Call call(spec, x, weight.sizes());
  if (b && b->is_cpu()) call.set_b(b->item().toDouble());
  return call;
}

int64_t count_rows(const Call& call, const at::Tensor& grad, const Needs& needs) {
  const bool joins = call.frozen && needs.x && !needs.weight && !needs.bias && !needs.b;
  if (!joins || call.images == 0 || grad.dim() == 0 || grad.size(0) % call.images) return 1;
  return std::max<int64_t>(1, grad.size(0) / call.images);
}

Saved make_saved(const Call& call, const Inputs& inputs, const at::Tensor& grad, const OptionalTensor& y,
                 const at::Tensor& n, const at::Tensor& l, const at::Tensor& winner) {
  const auto& x = inputs.x;
  const auto y_shape = call.y_shape();
  const auto dtype = call.spec.out_dtype;
  check_exactly(x, "grad", grad, call.of_rows(y_shape), dtype);
  Saved saved{grad, x, inputs.weight, {}, {}, {}, {}, inputs.b};
  if (call.saves_y()) {
    TORCH_CHECK_VALUE(y.has_value(), "y is None, allowed: the output, which b = 2 needs");
    check_exactly(x, "y", *y, y_shape, dtype);
    saved.y = *y;
  }
  if (call.saves_n()) {
    check_exactly(x, "n", n, call.n_shape(), accumulate_type(call.dtype));
    saved.n = n;
  }
  if (call.saves_l()) {
    check_exactly(x, "l", l, y_shape, dtype);
    saved.l = l;
  }
  if (call.saves_winner()) {
    check_exactly(x, "winner", winner, y_shape, at::kByte);
    saved.winner = winner;
  }
  return saved;
}

void set_joined(const Call& call, const OptionalTensor& dn, const OptionalTensor& dl, Saved& saved) {
  if (!dn && !dl) return;
  TORCH_CHECK_VALUE(call.has_norm(), "dn or dl is a tensor, allowed: None, because b = 1 has no scale");
  TORCH_CHECK_VALUE(dn && dl, "one of dn and dl is None, allowed: both or none");
  TORCH_CHECK_VALUE(call.rows == 1, "dn and dl are tensors, allowed: None beside ", call.rows,
                    " gradients an image");
  check_exactly(saved.x, "dn", *dn, call.n_shape(), accumulate_type(call.dtype));
  check_exactly(saved.x, "dl", *dl, call.y_shape(), call.spec.out_dtype);
  saved.dn = *dn;
  saved.dl = *dl;
}

void set_map(const Call& call, const OptionalTensor& map, Saved& saved) {
  if (!map) return;
  TORCH_CHECK_VALUE(call.saves_y(), "map is a tensor, allowed: None, because only b = 2 reads y");
  TORCH_CHECK_VALUE(call.rows == 1, "map is a tensor, allowed: None beside ", call.rows,
                    " gradients an image");
  check_exactly(saved.x, "map", *map, {4, call.outputs()}, accumulate_type(call.dtype));
  saved.map = map->contiguous();
}

Needs make_needs(const std::vector<bool>& needs, const OptionalTensor& b) {
  TORCH_CHECK_VALUE(needs.size() == 4, "needs has ", needs.size(), " values, allowed: 4");
  return {needs[0], needs[1], needs[2], needs[3] && b.has_value()};
}

Forward pack(const Outputs& outputs, const at::Tensor& x) {
  const auto or_empty = [&](const at::Tensor& t, at::ScalarType dtype) {
    return t.defined() ? t : at::empty({0}, x.options().dtype(dtype));
  };
  const auto& [y, n, l, winner, finite] = outputs;
  return {y, or_empty(n, accumulate_type(x.scalar_type())), or_empty(l, y.scalar_type()),
          or_empty(winner, at::kByte)};
}

Backward pack(Gradients&& gradients) {
  return {gradients.x, gradients.weight, gradients.bias, gradients.b};
}

SecondOrder pack(const Second& second) {
  return {second.grad, second.x, second.weight, given(second.n), given(second.l)};
}

}  // namespace bcos::transform::glue
