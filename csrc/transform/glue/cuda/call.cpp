#include "transform/glue/cuda/call.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

namespace bcos::transform::glue::cuda {

DeviceCall::DeviceCall(const Call& call, bool planes, bool large, bool tf32, bool divides_x)
    : Call(call), planes(planes), large(large), tf32(tf32), divides_x(divides_x) {
  narrow("the number of input pixels times groups", rows * in_pixels() * spec.groups);
  narrow("the number of output pixels times groups", rows * pixels() * spec.groups);
}

kernels::Window DeviceCall::device_window() const {
  return device_window(window.plane);
}

kernels::Window DeviceCall::device_window(const Plane& plane) const {
  const auto size = [](int64_t v) { return narrow("a size", v); };
  const auto& [rows, columns] = plane;
  return {size(rows.in),      size(columns.in),      size(rows.out),      size(columns.out),
          size(rows.kernel),  size(columns.kernel),  size(rows.stride),   size(columns.stride),
          size(rows.padding), size(columns.padding), size(rows.dilation), size(columns.dilation)};
}

kernels::Shape DeviceCall::device_shape() const {
  return {int(images),          int(spec.groups),  int(group_channels()),
          int(group_filters()), int(spec.max_out), device_window()};
}

at::Tensor DeviceCall::dense(const at::Tensor& t) const {
  return t.defined() ? aligned(t.contiguous(format())) : t;
}

at::Tensor DeviceCall::image(int64_t values, at::ScalarType dtype, const at::Tensor& like,
                             int64_t gradients) const {
  auto shape = y_shape();
  if (spec.linear) shape.insert(shape.end(), {1, 1});
  shape[0] *= gradients;
  shape[1] = values;
  return at::empty(shape, like.options().dtype(dtype).memory_format(format()));
}

std::string DeviceCall::sizes() const {
  const auto& [depth, plane, bordered] = window;
  const auto x = in_shape(channels);
  Ints weight{filters, group_channels(), plane.rows.kernel, plane.columns.kernel};
  if (!window.is_plane()) weight.insert(weight.begin() + 2, depth.kernel);
  return c10::str("x is [", c10::Join(", ", x), "], weight [", c10::Join(", ", weight), "]");
}

}  // namespace bcos::transform::glue::cuda
