#include "cpu/conv2d.h"

#include "host/ops.h"

namespace bcos::host {
Forward conv2d(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& b, const Ints& stride, const Ints& padding, const Ints& dilation,
               int64_t groups, int64_t max_out, double exponent, bool unit, double eps_inside,
               double eps_outside, double cos_eps, bool exact_two, at::ScalarType out_dtype) {
  const PlainAten guard;
  check_input(kCpu, x, 4);
  check_weight(x, weight);
  check_bias(x, weight, bias);
  check_out_dtype(x, out_dtype);
  const auto geometry = make_geometry(stride, padding, dilation, groups);
  const auto window = make_window(x, weight.sizes().slice(2), geometry);
  check_channels(x, weight, groups);
  const auto formula = make_formula(x, weight.size(0), groups, b, max_out, exponent, unit, eps_inside,
                                    eps_outside, cos_eps, exact_two);
  return pack(cpu::conv2d(x, weight, bias, window, formula, out_dtype), x);
}

Backward conv2d_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n,
                         const at::Tensor& l, const at::Tensor& winner, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups, int64_t max_out,
                         double exponent, bool unit, double eps_inside, double eps_outside, double cos_eps,
                         bool exact_two, bool explain, const std::vector<bool>& needs) {
  const PlainAten guard;
  check_input(kCpu, x, 4);
  check_weight(x, weight);
  const auto geometry = make_geometry(stride, padding, dilation, groups);
  const auto window = make_window(x, weight.sizes().slice(2), geometry);
  check_channels(x, weight, groups);
  auto formula = make_formula(x, weight.size(0), groups, b, max_out, exponent, unit, eps_inside, eps_outside,
                              cos_eps, exact_two);
  formula.explain = explain;
  using Shape = std::vector<int64_t>;
  const auto n_shape =
      saves_norm(weight, geometry) ? Shape{x.size(0), groups, window.out_h, window.out_w} : Shape{};
  const Shape y_shape{x.size(0), weight.size(0) / max_out, window.out_h, window.out_w};
  const auto saved = make_saved(grad, x, weight, b, y, n, l, winner, y_shape, n_shape, formula);
  return pack(cpu::conv2d_backward(saved, window, formula, make_needs(needs, b)));
}

}  // namespace bcos::host
