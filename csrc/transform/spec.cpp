#include "transform/spec.h"

#include <array>

namespace bcos::transform {
namespace {

Axis make_axis(const Spec& spec, int64_t axis, int64_t kernel, int64_t in) {
  Axis a{kernel, spec.stride[axis], spec.padding[axis], spec.dilation[axis], in};
  const int64_t padded = in + 2 * a.padding, extent = (kernel - 1) * a.dilation + 1;
  TORCH_CHECK_VALUE(extent <= padded, "the kernel spans ", extent,
                    " pixels, allowed: at most the padded input's ", padded);
  a.out = (padded - extent) / a.stride + 1;
  return a;
}

Window make_window(const Spec& spec, const at::Tensor& x, at::IntArrayRef weight_sizes) {
  Window w;
  if (spec.linear) return w;
  const auto axes = int64_t(spec.stride.size());
  const auto kernel = weight_sizes.slice(2);
  check_sizes("the size of the kernel", kernel, axes, 1);
  const std::array<Axis*, 3> found{&w.depth, &w.plane.rows, &w.plane.columns};
  for (int64_t i = 0; i < axes; i++) *found[3 - axes + i] = make_axis(spec, i, kernel[i], x.size(2 + i));
  w.bordered = !spec.border.empty();
  for (size_t i = 0; i < spec.border.size(); i += 2)
    TORCH_CHECK_VALUE(spec.border[i] + spec.border[i + 1] < x.size(2 + i / 2), "border is ", spec.border[i],
                      " and ", spec.border[i + 1], ", allowed: less than x's ", x.size(2 + i / 2),
                      " positions of that axis");
  return w;
}

void check_axes(const Spec& spec) {
  const auto axes = int64_t(spec.stride.size());
  TORCH_CHECK_VALUE(axes == 2 || axes == 3, "stride has ", axes, " values, allowed: 2 or 3");
  check_sizes("stride", spec.stride, axes, 1);
  check_sizes("padding", spec.padding, axes, 0);
  check_sizes("dilation", spec.dilation, axes, 1);
  if (spec.border.empty()) return;
  check_sizes("border", spec.border, 2 * axes, 0);
  for (int64_t padding : spec.padding)
    TORCH_CHECK_VALUE(padding == 0, "padding is ", padding, ", allowed: 0 beside a border");
}

}  // namespace

Spec::Spec(const Ints& stride, const Ints& padding, const Ints& dilation, const Ints& border, int64_t groups,
           int64_t max_out, std::optional<double> b, bool unit, std::pair<double, double> norm_eps,
           double cos_eps, bool exact_two, at::ScalarType out_dtype)
    : linear(stride.empty() && padding.empty() && dilation.empty()),
      stride(stride.begin(), stride.end()),
      padding(padding.begin(), padding.end()),
      dilation(dilation.begin(), dilation.end()),
      border(border.begin(), border.end()),
      groups(groups),
      max_out(max_out),
      b(b),
      unit(unit),
      eps_inside(norm_eps.first),
      eps_outside(norm_eps.second),
      cos_eps(cos_eps),
      exact_two(exact_two),
      out_dtype(out_dtype) {
  if (!linear) check_axes(*this);
  TORCH_CHECK_VALUE(!linear || border.empty(), "border has ", border.size(),
                    " values, allowed: none for a linear layer");
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

at::DimVector Call::in_shape(int64_t values) const {
  const auto& [depth, plane, bordered] = window;
  if (spec.linear) return {images, values};
  if (spec.stride.size() == 2) return {images, values, plane.rows.in, plane.columns.in};
  return {images, values, depth.in, plane.rows.in, plane.columns.in};
}

at::DimVector Call::shape_of(int64_t values) const {
  const auto& [depth, plane, bordered] = window;
  if (spec.linear) return {images, values};
  if (spec.stride.size() == 2) return {images, values, plane.rows.out, plane.columns.out};
  return {images, values, depth.out, plane.rows.out, plane.columns.out};
}

}  // namespace bcos::transform
