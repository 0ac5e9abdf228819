#include "cpu/linear.h"

#include "host/ops.h"

namespace bcos::host {
Forward linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& b, int64_t max_out, double exponent, bool unit, double eps_inside,
               double eps_outside, double cos_eps, bool exact_two, at::ScalarType out_dtype) {
  const PlainAten guard;
  check_input(kCpu, x, 2);
  check_weight(x, weight);
  check_bias(x, weight, bias);
  check_out_dtype(x, out_dtype);
  check_channels(x, weight, 1);
  const auto formula = make_formula(x, weight.size(0), 1, b, max_out, exponent, unit, eps_inside, eps_outside,
                                    cos_eps, exact_two);
  return pack(cpu::linear(x, weight, bias, formula, out_dtype), x);
}

Backward linear_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n,
                         const at::Tensor& l, const at::Tensor& winner, int64_t max_out, double exponent,
                         bool unit, double eps_inside, double eps_outside, double cos_eps, bool exact_two,
                         bool explain, const std::vector<bool>& needs) {
  const PlainAten guard;
  check_input(kCpu, x, 2);
  check_weight(x, weight);
  check_channels(x, weight, 1);
  auto formula = make_formula(x, weight.size(0), 1, b, max_out, exponent, unit, eps_inside, eps_outside,
                              cos_eps, exact_two);
  formula.explain = explain;
  const auto saved = make_saved(grad, x, weight, b, y, n, l, winner, {x.size(0), weight.size(0) / max_out},
                                {x.size(0), 1}, formula);
  return pack(cpu::linear_backward(saved, formula, make_needs(needs, b)));
}

}  // namespace bcos::host
