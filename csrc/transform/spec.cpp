#include "transform/spec.h"

#include <limits>

namespace bcos::transform {
namespace {

Window make_window(const Spec& spec, const at::Tensor& x, at::IntArrayRef weight_sizes) {
  Window w{spec.stride, spec.padding, spec.dilation, 1, 1, 1, 1, 1, 1};
  if (spec.linear) return w;
  const auto kernel = checked_pair("the size of the kernel", weight_sizes.slice(2), 1);
  int64_t out[2];
  for (int i = 0; i < 2; i++) {
    const int64_t padded = x.size(2 + i) + 2 * spec.padding[i];
    const int64_t extent = (kernel[i] - 1) * spec.dilation[i] + 1;
    TORCH_CHECK_VALUE(extent <= padded, "the kernel spans ", extent,
                      " pixels, allowed: at most the padded input's ", padded);
    out[i] = (padded - extent) / spec.stride[i] + 1;
  }
  return {spec.stride, spec.padding, spec.dilation, kernel[0], kernel[1],
          x.size(2),   x.size(3),    out[0],        out[1]};
}

}  // namespace

Spec::Spec(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, int64_t max_out,
           std::optional<double> b, bool unit, std::pair<double, double> norm_eps, double cos_eps,
           bool exact_two, at::ScalarType out_dtype)
    : linear(stride.empty() && padding.empty() && dilation.empty()),
      stride{1, 1},
      padding{0, 0},
      dilation{1, 1},
      groups(groups),
      max_out(max_out),
      b(b),
      unit(unit),
      eps_inside(norm_eps.first),
      eps_outside(norm_eps.second),
      cos_eps(cos_eps),
      exact_two(exact_two),
      out_dtype(out_dtype) {
  if (!linear) {
    this->stride = checked_pair("stride", stride, 1);
    this->padding = checked_pair("padding", padding, 0);
    this->dilation = checked_pair("dilation", dilation, 1);
  }
  TORCH_CHECK_VALUE(groups >= 1, "groups is ", groups, ", allowed: 1 or more");
  TORCH_CHECK_VALUE(!linear || groups == 1, "groups is ", groups, ", allowed: 1 for a linear layer");
  TORCH_CHECK_VALUE(max_out >= 1 && max_out <= 255, "max_out is ", max_out, ", allowed: 1 to 255");
  if (b) check_number("b", *b, 1);
  check_number("norm_eps[0]", eps_inside, 0);
  check_number("norm_eps[1]", eps_outside, 0);
  check_number("cos_eps", cos_eps, 0);
  TORCH_CHECK_TYPE(at::isFloatingType(out_dtype), "out_dtype is ", out_dtype,
                   ", allowed: a floating point dtype");
}

Call::Call(const Spec& spec, const at::Tensor& x, at::IntArrayRef weight_sizes)
    : spec(spec),
      images(x.size(0)),
      channels(x.size(1)),
      filters(weight_sizes[0]),
      window(make_window(spec, x, weight_sizes)),
      dtype(x.scalar_type()),
      power(Power::General),
      b(spec.b.value_or(0)),
      cos_eps(b == 2 && spec.exact_two ? 0 : spec.cos_eps) {
  TORCH_CHECK_VALUE(channels % spec.groups == 0, "groups is ", spec.groups, ", allowed: a divisor of x's ",
                    channels, " channels");
  TORCH_CHECK_VALUE(weight_sizes[1] == group_channels(), "weight has ", weight_sizes[1],
                    " channels and groups is ", spec.groups, ", allowed: a product of x's ", channels,
                    " channels");
  TORCH_CHECK_VALUE(filters % spec.max_out == 0 && outputs() % spec.groups == 0, "weight has ", filters,
                    " filters, allowed: a multiple of max_out ", spec.max_out, " times groups ", spec.groups);
  if (b == 1) power = Power::One;
  if (b == 2 && cos_eps == 0) power = Power::Two;
}

void Call::set_b(double value) {
  b = value;
  cos_eps = b == 2 && spec.exact_two ? 0 : spec.cos_eps;
}

}  // namespace bcos::transform
