#include "host/cuda/problem.h"

#include <ATen/ops/empty.h>

#include <limits>

namespace bcos::host::gpu {
namespace {

constexpr int64_t kAlignment = 16;  // bytes of the kernels' widest access

int narrow(const char* name, int64_t v) {
  TORCH_CHECK_VALUE(v <= std::numeric_limits<int>::max(), name, " is ", v, ", allowed: below 2^31");
  return int(v);
}

}  // namespace

Problem::Problem(const at::Tensor& x, const at::Tensor& weight, const bcos::Window& window,
                 const bcos::Formula& formula, bool linear, Candidate candidate)
    : images(x.size(0)),
      groups(window.g.groups),
      group_channels(weight.size(1)),
      group_filters(weight.size(0) / window.g.groups),
      max_out(formula.max_out),
      window(window),
      formula(formula),
      linear(linear),
      planes(!linear && candidate == Candidate::Vendor && x.is_contiguous() && weight.is_contiguous()) {
  narrow("number of input pixels x groups", in_pixels() * groups);
  narrow("number of output pixels x groups", pixels() * groups);
}

cuda::Window Problem::cuda_window() const {
  const auto& [stride, padding, dilation, unused] = window.g;
  const auto size = [](int64_t v) { return narrow("size", v); };
  return {size(window.in_h), size(window.in_w), size(window.out_h), size(window.out_w),
          size(window.kh),   size(window.kw),   size(stride[0]),    size(stride[1]),
          size(padding[0]),  size(padding[1]),  size(dilation[0]),  size(dilation[1])};
}

cuda::Shape Problem::cuda_shape() const {
  return {int(images), int(groups), int(group_channels), int(group_filters), int(max_out), cuda_window()};
}

cuda::Formula Problem::cuda_formula(const at::Tensor& b) const {
  const auto k = formula.constants<float>();
  return {formula.power, k.b_minus_1,    k.cos_eps,        k.eps_inside,
          k.eps_outside, data<float>(b), formula.exact_two};
}

at::Tensor Problem::image(int64_t channels, at::ScalarType dtype, const at::Tensor& like) const {
  return at::empty({images, channels, window.out_h, window.out_w},
                   like.options().dtype(dtype).memory_format(format()));
}

cuda::Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return cuda::Dtype::Float16;
    case at::kBFloat16:
      return cuda::Dtype::BFloat16;
    case at::kFloat:
      return cuda::Dtype::Float32;
    default:
      TORCH_CHECK(false, "the CUDA kernels have no dtype ", t.scalar_type(),
                  ", only float, half and bfloat16");
  }
}

at::Tensor aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(data(t)) % kAlignment == 0 ? t : t.clone();
}

at::Tensor Problem::dense(const at::Tensor& t) const {
  return t.defined() ? aligned(t.contiguous(format())) : t;
}

void check(cudaError_t code, const char* kernel, const Problem& p) {
  const cudaError_t error = error_of(code);
  TORCH_CHECK(error == cudaSuccess, "the CUDA kernel ", kernel, " failed: ", describe(error), "; x is [",
              p.images, ", ", p.groups * p.group_channels, ", ", p.window.in_h, ", ", p.window.in_w,
              "], weight [", p.filters(), ", ", p.group_channels, ", ", p.window.kh, ", ", p.window.kw, "]");
}

}  // namespace bcos::host::gpu
