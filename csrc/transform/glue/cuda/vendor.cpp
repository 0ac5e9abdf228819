#include "transform/glue/cuda/vendor.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/matmul.h>

namespace bcos::transform::glue::cuda {

at::Tensor vendor_product(const DeviceCall& call, const at::Tensor& x, const at::Tensor& operand) {
  const auto& s = call.spec;
  if (s.linear) return at::matmul(x.flatten(1), operand.flatten(1).t());
  return call.dense(at::convolution(x, operand, std::nullopt, s.stride, s.padding, s.dilation, false,
                                    at::DimVector(s.stride.size(), 0), s.groups));
}

std::tuple<at::Tensor, at::Tensor> vendor_gradients(const DeviceCall& call, const at::Tensor& u,
                                                    const at::Tensor& x, const at::Tensor& operand,
                                                    bool needs_x, bool needs_weight) {
  const auto& s = call.spec;
  at::Tensor dx, dw;
  if (s.linear) {
    if (needs_x) dx = at::matmul(u.flatten(1), operand.flatten(1)).view({-1, call.channels, 1, 1});
    if (needs_weight) dw = at::matmul(u.flatten(1).t(), x.flatten(1)).contiguous();
  } else if (needs_x || needs_weight) {
    auto shape = x.sizes().vec();
    shape[0] = u.size(0);
    const auto images = call.rows == 1 ? x : x.narrow(0, 0, 1).expand(shape);
    std::tie(dx, dw, std::ignore) =
        at::convolution_backward(u, images, operand, std::nullopt, s.stride, s.padding, s.dilation, false,
                                 at::DimVector(s.stride.size(), 0), s.groups, {needs_x, needs_weight, false});
    dx = call.dense(dx);
    dw = call.dense(dw);
  }
  return {dx, dw};
}

}  // namespace bcos::transform::glue::cuda
