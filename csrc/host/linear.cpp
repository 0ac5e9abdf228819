#include "cpu/linear.h"

#include <ATen/ops/empty.h>

#include "cpu/types.h"
#include "host/ops.h"

namespace bcos::host {
namespace {

void check_filters(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(weight.size(1) == x.size(1), "weight has ", weight.size(1), " columns, allowed: x's ",
                    x.size(1));
}

}  // namespace

Forward linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& b, int64_t max_out, double exponent, bool unit, double eps_inside,
               double eps_outside, double cos_eps, bool exact_two, at::ScalarType out_dtype) {
  const PlainAten guard;
  check_input(x, 2);
  check_weight(x, weight);
  check_bias(x, weight, bias);
  check_out_dtype(x, out_dtype);
  check_filters(x, weight);
  const auto formula = make_formula(weight.size(0), 1, b, max_out, exponent, unit, eps_inside, eps_outside,
                                    cos_eps, exact_two);
  return pack(cpu::linear(x, weight, bias, formula, out_dtype), x);
}

Backward linear_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n,
                         const at::Tensor& l, const at::Tensor& winner, int64_t max_out, double exponent,
                         bool unit, double eps_inside, double eps_outside, double cos_eps, bool exact_two,
                         bool explain, const std::vector<bool>& needs) {
  const PlainAten guard;
  check_input(x, 2);
  check_weight(x, weight);
  check_filters(x, weight);
  auto formula = make_formula(weight.size(0), 1, b, max_out, exponent, unit, eps_inside, eps_outside, cos_eps,
                              exact_two);
  formula.explain = explain;
  const auto saved = make_saved(grad, x, weight, b, y, n, l, winner, {x.size(0), weight.size(0) / max_out},
                                {x.size(0), 1}, formula);
  return pack(cpu::linear_backward(saved, formula, make_needs(needs, b)));
}

Forward pack(const Outputs& out, const at::Tensor& x) {
  const auto or_empty = [&](const at::Tensor& t, at::ScalarType dtype) {
    return t.defined() ? t : at::empty({0}, x.options().dtype(dtype));
  };
  return {out.y, or_empty(out.n, cpu::accumulate_type(x.scalar_type())), or_empty(out.l, out.y.scalar_type()),
          or_empty(out.winner, at::kByte)};
}

}  // namespace bcos::host
