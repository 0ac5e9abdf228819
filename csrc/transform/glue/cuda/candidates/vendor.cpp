// vendor: the products of cuDNN and cuBLAS through torch, and kernels for the norm and the scale beside them.
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sum.h>

#include "transform/glue/cuda/norm.h"
#include "transform/glue/cuda/scale.h"

namespace bcos::transform::glue::cuda {
namespace {

at::Tensor product(const ForwardCall& c) {
  const auto& call = c.call;
  const auto& w = call.window;
  if (call.spec.linear) return at::matmul(c.x.flatten(1), c.weights.operand.flatten(1).t());
  return call.dense(at::convolution(c.x, c.weights.operand, std::nullopt, w.stride, w.padding, w.dilation,
                                    false, {0, 0}, call.spec.groups));
}

void forward(const ForwardCall& c) {
  const auto z = product(c);
  scale_forward(c, z, norm(c.call, c.x, c.out.n));
}

Parts backward(const BackwardCall& c) {
  const auto& call = c.call;
  const auto& w = call.window;
  const auto& x = c.saved.x;
  const auto& operand = c.weights.operand;
  const auto [u, t, db] = scale_backward(c);
  Parts out{{}, {}, {}, db};
  if (c.needs.bias) out.dbias = u.sum({0, 2, 3}, false, at::kFloat);
  if (call.spec.linear) {
    if (c.needs.x) out.dx = at::matmul(u.flatten(1), operand.flatten(1)).view(x.sizes());
    if (c.needs.weight) out.partial = at::matmul(u.flatten(1).t(), x.flatten(1)).contiguous();
  } else if (c.needs.x || c.needs.weight) {
    const auto [dx, dw, unused] =
        at::convolution_backward(u, x, operand, std::nullopt, w.stride, w.padding, w.dilation, false, {0, 0},
                                 call.spec.groups, {c.needs.x, c.needs.weight, false});
    out.dx = call.dense(dx);
    out.partial = call.dense(dw);
  }
  if (c.needs.x && call.norm_gradient()) add_norm_gradient(call, x, t, out.dx);
  return out;
}

const Registered registered({"vendor", true, forward, backward});

}  // namespace
}  // namespace bcos::transform::glue::cuda
