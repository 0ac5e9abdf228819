#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "transform/glue/cuda/products.h"
#include "transform/glue/cuda/scale.h"

namespace bcos::transform::glue::cuda {
namespace {

// The sizes that every kernel takes.
template <typename Params>
void fill_sizes(Params& k, const DeviceCall& call) {
  k.N = int(call.images);
  k.C = int(call.channels);
  k.window = call.device_window();
}

}  // namespace

void depthwise_forward(const ForwardCall& c) {
  kernels::DepthwiseFwd k{};
  fill_forward<float>(k, c);
  fill_sizes(k, c.call);
  k.x = data(c.x);
  k.w = data(c.weights.operand);
  launch("depthwise_fwd", kernels::depthwise_fwd, k, c.call);
}

Parts depthwise_backward(const BackwardCall& c) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  Parts out;
  const auto u = call.image(call.filters, call.dtype, x);
  at::Tensor t;
  if (call.norm_gradient()) t = call.image(call.spec.groups, at::kFloat, x);
  kernels::DepthwiseBwd k{};
  fill_backward<float>(k, c);
  fill_sizes(k, call);
  k.x = data(x);
  k.u = mutable_data(u);
  k.t = mutable_data<float>(t);
  launch("depthwise_bwd", kernels::depthwise_bwd, k, call);
  if (c.needs.x) {
    out.dx = at::empty_like(x);
    kernels::DepthwiseDgrad d{};
    fill_sizes(d, call);
    d.u = data(u);
    d.t = data<float>(t);
    d.w = data(c.weights.operand);
    d.x = data(x);
    d.dx = mutable_data(out.dx);
    d.dtype = k.dtype;
    launch("depthwise_dgrad", kernels::depthwise_dgrad, d, call);
  }
  if (c.needs.weight || c.needs.bias) {
    kernels::DepthwiseWgrad w{};
    fill_sizes(w, call);
    w.splits = shares(call.pixels(), ceil_div(call.channels, 32) * call.window.plane.rows.kernel);
    out.partial = new_sums({w.splits, call.filters, call.window.taps()}, x);
    if (c.needs.bias) out.dbias = new_sums({w.splits, call.filters}, x);
    w.u = data(u);
    w.x = data(x);
    w.dw = mutable_data<float>(out.partial);
    w.dbias = mutable_data<float>(out.dbias);
    w.dtype = k.dtype;
    launch("depthwise_wgrad", kernels::depthwise_wgrad, w, call);
  }
  if (out.dbias.defined()) out.dbias = out.dbias.sum(0);
  return out;
}

}  // namespace bcos::transform::glue::cuda
