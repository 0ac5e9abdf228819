#include "host/checks.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace bcos::host {
namespace {

void check_strided(const char* name, const at::Tensor& t) {
  TORCH_CHECK_TYPE(t.defined(), name, " is not a tensor");
  TORCH_CHECK_TYPE(t.layout() == at::kStrided, name, " has layout ", t.layout(), ", allowed: strided");
}

void check_beside(const at::Tensor& x, const char* name, const at::Tensor& t) {
  check_strided(name, t);
  TORCH_CHECK_VALUE(t.device() == x.device(), name, " is on ", t.device(), ", allowed: ", x.device(),
                    " as x is");
}

bool is_half(at::ScalarType t) {
  return t == at::kBFloat16 || t == at::kHalf;
}

void check_saved(const at::Tensor& x, const char* name, const at::Tensor& t, at::IntArrayRef shape,
                 at::ScalarType dtype) {
  check_beside(x, name, t);
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, " has dtype ", t.scalar_type(), ", allowed: ", dtype);
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " has shape ", t.sizes(), ", allowed: ", shape);
}

std::array<int64_t, 2> pair(const char* name, const Ints& v, int64_t least) {
  TORCH_CHECK_VALUE(v.size() == 2, name, " has ", v.size(), " values, allowed: 2");
  for (int64_t i : v)
    TORCH_CHECK_VALUE(i >= least && i <= std::numeric_limits<int32_t>::max(), name, " is ", i,
                      ", allowed: ", least, " to 2^31-1");
  return {v[0], v[1]};
}

void check_epsilon(const char* name, double v) {
  TORCH_CHECK_VALUE(std::isfinite(v) && v >= 0, name, " is ", v, ", allowed: a finite number >= 0");
}

}  // namespace

void check_input(const Takes& takes, const at::Tensor& x, int64_t rank) {
  check_strided("x", x);
  TORCH_CHECK_VALUE(x.device().type() == takes.device, "x is on ", x.device(), ", allowed: ", takes.device);
  TORCH_CHECK_TYPE(std::count(takes.dtypes.begin(), takes.dtypes.end(), x.scalar_type()) == 1, "x has dtype ",
                   x.scalar_type(), ", allowed: ", at::ArrayRef<at::ScalarType>(takes.dtypes));
  TORCH_CHECK_VALUE(x.dim() == rank, "x has ", x.dim(), " dimensions, allowed: ", rank);
  for (int64_t d = 1; d < rank; d++)
    TORCH_CHECK_VALUE(x.size(d) > 0, "x has shape ", x.sizes(), ", allowed: only the batch is empty");
}

void check_weight(const at::Tensor& x, const at::Tensor& weight) {
  check_beside(x, "weight", weight);
  const auto dtype = weight.scalar_type();
  TORCH_CHECK_TYPE(dtype == x.scalar_type() || (dtype == at::kFloat && is_half(x.scalar_type())),
                   "weight has dtype ", dtype, ", allowed: x's dtype ", x.scalar_type(),
                   ", or float beside an x of a half type");
  TORCH_CHECK_VALUE(weight.dim() == x.dim(), "weight has ", weight.dim(), " dimensions, allowed: ", x.dim());
  TORCH_CHECK_VALUE(weight.numel() > 0, "weight has shape ", weight.sizes(), ", allowed: sizes of 1 or more");
}

void check_bias(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  if (!bias) return;
  check_beside(x, "bias", *bias);
  const auto dtype = bias->scalar_type();
  TORCH_CHECK_TYPE(dtype == x.scalar_type() || dtype == weight.scalar_type(), "bias has dtype ", dtype,
                   ", allowed: ", x.scalar_type(), " or ", weight.scalar_type());
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0), "bias has shape ", bias->sizes(),
                    ", allowed: [", weight.size(0), "]");
}

void check_out_dtype(const at::Tensor& x, at::ScalarType out_dtype) {
  TORCH_CHECK_TYPE(out_dtype == x.scalar_type() || (out_dtype == at::kFloat && is_half(x.scalar_type())),
                   "out_dtype is ", out_dtype, ", allowed: x's dtype ", x.scalar_type(),
                   ", or float beside an x of a half type");
}

void check_channels(const at::Tensor& x, const at::Tensor& weight, int64_t groups) {
  TORCH_CHECK_VALUE(weight.size(1) * groups == x.size(1), "weight has ", weight.size(1),
                    " channels and groups is ", groups, ", allowed: a product of x's ", x.size(1),
                    " channels");
}

Geometry make_geometry(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  TORCH_CHECK_VALUE(groups >= 1, "groups is ", groups, ", allowed: 1 or more");
  return {pair("stride", stride, 1), pair("padding", padding, 0), pair("dilation", dilation, 1), groups};
}

Window make_window(const at::Tensor& x, at::IntArrayRef kernel, const Geometry& g) {
  TORCH_CHECK_VALUE(x.size(1) % g.groups == 0, "groups is ", g.groups, ", allowed: a divisor of x's ",
                    x.size(1), " channels");
  int64_t out[2];
  for (int i = 0; i < 2; i++) {
    TORCH_CHECK_VALUE(kernel[i] >= 1 && kernel[i] <= std::numeric_limits<int32_t>::max(), "kernel size is ",
                      kernel[i], ", allowed: 1 to 2^31-1");
    const int64_t padded = x.size(2 + i) + 2 * g.padding[i], extent = (kernel[i] - 1) * g.dilation[i] + 1;
    TORCH_CHECK_VALUE(extent <= padded, "kernel spans ", extent, " pixels, allowed: the padded input's ",
                      padded);
    out[i] = (padded - extent) / g.stride[i] + 1;
  }
  return {g, kernel[0], kernel[1], x.size(2), x.size(3), out[0], out[1]};
}

Formula make_formula(const at::Tensor& x, int64_t filters, int64_t groups, const OptionalTensor& b,
                     int64_t max_out, double exponent, bool unit, double eps_inside, double eps_outside,
                     double cos_eps, bool exact_two) {
  TORCH_CHECK_VALUE(max_out >= 1 && max_out <= 255, "max_out is ", max_out, ", allowed: 1 to 255");
  TORCH_CHECK_VALUE(filters % max_out == 0 && filters / max_out % groups == 0, "weight has ", filters,
                    " filters, allowed: a multiple of max_out ", max_out, " times groups ", groups);
  if (b) {
    check_beside(x, "b", *b);
    TORCH_CHECK_TYPE(at::isFloatingType(b->scalar_type()), "b has dtype ", b->scalar_type(),
                     ", allowed: a floating point dtype");
    TORCH_CHECK_VALUE(b->numel() == 1, "b has ", b->numel(), " elements, allowed: 1");
    if (b->is_cpu()) exponent = b->item().toDouble();
  } else {
    TORCH_CHECK_VALUE(std::isfinite(exponent) && exponent >= 1, "exponent is ", exponent,
                      ", allowed: 1 or more");
  }
  check_epsilon("eps_inside", eps_inside);
  check_epsilon("eps_outside", eps_outside);
  check_epsilon("cos_eps", cos_eps);
  if (exponent == 2 && exact_two) cos_eps = 0;
  Power power = Power::General;
  if (!b && exponent == 1) power = Power::One;
  if (!b && exponent == 2 && cos_eps == 0) power = Power::Two;
  return {max_out, exponent, unit, eps_inside, eps_outside, cos_eps, power, exact_two};
}

Saved make_saved(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                 const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                 const at::Tensor& winner, at::IntArrayRef y_shape, at::IntArrayRef n_shape,
                 const Formula& formula) {
  check_beside(x, "grad", grad);
  check_out_dtype(x, grad.scalar_type());
  check_saved(x, "grad", grad, y_shape, grad.scalar_type());
  Saved saved{grad, x, weight, {}, {}, {}, {}, b};
  if (formula.power == Power::Two) {
    TORCH_CHECK_VALUE(y.has_value(), "y is None, allowed: the output, which b = 2 needs");
    check_saved(x, "y", *y, y_shape, grad.scalar_type());
    saved.y = *y;
  }
  if (formula.has_norm() && !n_shape.empty()) {
    check_saved(x, "n", n, n_shape, accumulate_type(x.scalar_type()));
    saved.n = n;
  }
  if (formula.saves_l()) {
    check_saved(x, "l", l, y_shape, grad.scalar_type());
    saved.l = l;
  }
  if (formula.max_out > 1) {
    check_saved(x, "winner", winner, y_shape, at::kByte);
    saved.winner = winner;
  }
  return saved;
}

Needs make_needs(const std::vector<bool>& needs, const OptionalTensor& b) {
  TORCH_CHECK_VALUE(needs.size() == 4, "needs has ", needs.size(), " values, allowed: 4");
  return {needs[0], needs[1], needs[2], needs[3] && b.has_value()};
}

}  // namespace bcos::host
