#include "transform/glue/cuda/call.h"

#include <ATen/ops/empty.h>

#include <limits>

namespace bcos::transform::glue::cuda {
namespace {

constexpr int64_t kAlignment = 16;  // bytes of the kernels' widest access

int narrow(const char* name, int64_t v) {
  TORCH_CHECK_VALUE(v <= std::numeric_limits<int>::max(), name, " is ", v, ", allowed: below 2^31");
  return int(v);
}

}  // namespace

DeviceCall::DeviceCall(const Call& call, bool planes, bool large, bool tf32)
    : Call(call), planes(planes), large(large), tf32(tf32) {
  narrow("the number of input pixels times groups", in_pixels() * spec.groups);
  narrow("the number of output pixels times groups", pixels() * spec.groups);
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

at::Tensor DeviceCall::image(int64_t values, at::ScalarType dtype, const at::Tensor& like) const {
  return at::empty({images, values, window.out_h, window.out_w},
                   like.options().dtype(dtype).memory_format(format()));
}

kernels::Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return kernels::Dtype::Float16;
    case at::kBFloat16:
      return kernels::Dtype::BFloat16;
    case at::kFloat:
      return kernels::Dtype::Float32;
    default:
      TORCH_CHECK(false, "the CUDA kernels have no dtype ", t.scalar_type(),
                  ", allowed: float, half and bfloat16");
  }
}

at::Tensor aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(data(t)) % kAlignment == 0 ? t : t.clone();
}

at::Tensor floats(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

void check(cudaError_t code, const char* kernel, const DeviceCall& call) {
  const cudaError_t error = error_of(code);
  TORCH_CHECK(error == cudaSuccess, "the CUDA kernel ", kernel, " failed: ", describe(error), "; x is [",
              call.images, ", ", call.channels, ", ", call.window.in_h, ", ", call.window.in_w, "], weight [",
              call.filters, ", ", call.group_channels(), ", ", call.window.kh, ", ", call.window.kw, "]");
}

}  // namespace bcos::transform::glue::cuda
