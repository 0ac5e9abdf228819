// vendor: the products of cuDNN and cuBLAS through torch, and kernels for the norm and the scale beside them.
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sum.h>

#include "transform/glue/cuda/norm.h"
#include "transform/glue/cuda/scale.h"

namespace bcos::transform::glue::cuda {
namespace {

at::Tensor product(const DeviceCall& call, const at::Tensor& x, const at::Tensor& operand) {
  const auto& s = call.spec;
  if (s.linear) return at::matmul(x.flatten(1), operand.flatten(1).t());
  return call.dense(at::convolution(x, operand, std::nullopt, s.stride, s.padding, s.dilation, false,
                                    at::DimVector(s.stride.size(), 0), s.groups));
}

// dx and the gradient of the operand, undefined where not needed, from u = dL/dz. Of several rows only dx is
// needed, and then a product reads nothing of x but its sizes.
std::tuple<at::Tensor, at::Tensor> gradients(const DeviceCall& call, const at::Tensor& u, const at::Tensor& x,
                                             const at::Tensor& operand, bool needs_x, bool needs_weight) {
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

void forward(const ForwardCall& c) {
  const auto z = product(c.call, c.x, c.weights.operand);
  scale_forward(c, z, norm(c.call, c.x, c.out.n));
}

Parts backward(const BackwardCall& c) {
  const auto [u, t, db] = scale_backward(c);
  Parts out{{}, {}, {}, db};
  if (c.needs.bias) out.dbias = u.flatten(2).sum({0, 2}, false, at::kFloat);
  std::tie(out.dx, out.partial) =
      gradients(c.call, u, c.saved.x, c.weights.operand, c.needs.x, c.needs.weight);
  if (c.needs.x && c.saved.norm_gradient(c.call)) add_norm_gradient(c.call, c.saved.x, t, out.dx);
  return out;
}

SecondParts second(const SecondCall& c) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  const auto n = c.saved.n.defined() ? c.saved.n : norm(call, x, {});
  const auto m = call.norm_gradient() ? patch_products(call, x, c.v) : at::Tensor();
  SecondParts out;
  const auto [u, t, unused] = scale_second(c, product(call, c.v, c.weights.operand), n, m, out);
  if (c.needs.x && call.norm_gradient()) out.x = norm_gradient(call, c.v, t);
  out.partial = std::get<1>(gradients(call, u, c.v, c.weights.operand, false, c.needs.weight));
  return out;
}

const Registered registered({"vendor", true, forward, backward, second, true, true, true});

}  // namespace
}  // namespace bcos::transform::glue::cuda
