#include "transform/glue/cuda/call.h"

#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

namespace bcos::transform::glue::cuda {

DeviceCall::DeviceCall(const Call& call, bool planes, bool large, bool tf32)
    : Call(call), planes(planes), large(large), tf32(tf32) {
  narrow("the number of input pixels times groups", rows * in_pixels() * spec.groups);
  narrow("the number of output pixels times groups", rows * pixels() * spec.groups);
}

kernels::Window DeviceCall::device_window() const {
  const auto size = [](int64_t v) { return narrow("a size", v); };
  const auto& w = window;
  return {size(w.in_h),       size(w.in_w),       size(w.out_h),       size(w.out_w),
          size(w.kh),         size(w.kw),         size(w.stride[0]),   size(w.stride[1]),
          size(w.padding[0]), size(w.padding[1]), size(w.dilation[0]), size(w.dilation[1])};
}

kernels::Shape DeviceCall::device_shape() const {
  return {int(images),          int(spec.groups),  int(group_channels()),
          int(group_filters()), int(spec.max_out), device_window()};
}

kernels::Formula DeviceCall::device_formula(const at::Tensor& b) const {
  const auto k = constants<float>();
  return {power, k.b_minus_1, k.cos_eps, k.eps_inside, k.eps_outside, data<float>(b), spec.exact_two};
}

at::Tensor DeviceCall::dense(const at::Tensor& t) const {
  return t.defined() ? aligned(t.contiguous(format())) : t;
}

at::Tensor DeviceCall::image(int64_t values, at::ScalarType dtype, const at::Tensor& like,
                             int64_t gradients) const {
  return at::empty({gradients * images, values, window.out_h, window.out_w},
                   like.options().dtype(dtype).memory_format(format()));
}

std::string DeviceCall::sizes() const {
  return c10::str("x is [", images, ", ", channels, ", ", window.in_h, ", ", window.in_w, "], weight [",
                  filters, ", ", group_channels(), ", ", window.kh, ", ", window.kw, "]");
}

}  // namespace bcos::transform::glue::cuda
