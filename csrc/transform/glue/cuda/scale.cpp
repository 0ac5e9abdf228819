#include "transform/glue/cuda/scale.h"

#include <ATen/ops/sum.h>

#include "transform/glue/cuda/norm.h"

namespace bcos::transform::glue::cuda {
namespace {

// The sizes that both directions take.
template <typename Params>
void fill_rows(Params& k, const DeviceCall& call) {
  k.rows = int(call.pixels() * call.spec.groups);
  k.G = int(call.spec.groups);
  k.OG = int(call.group_outputs());
  k.max_out = int(call.spec.max_out);
  k.plane = call.device_plane();
}

}  // namespace

void scale_forward(const ForwardCall& c, const at::Tensor& z, const at::Tensor& n) {
  kernels::ScaleFwd k{};
  fill_forward(k, c);
  fill_rows(k, c.call);
  k.z = data(z);
  k.n = data<float>(n);
  k.winner = mutable_data<uint8_t>(c.out.winner);
  launch("scale_fwd", kernels::scale_fwd, k, c.call);
}

ScaleGradients scale_backward(const BackwardCall& c) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  const auto n = c.saved.n.defined() ? c.saved.n : norm(call, x, {});
  ScaleGradients out{call.image(call.filters, call.dtype, x), {}, {}};
  if (call.norm_gradient()) out.t = call.image(call.spec.groups, at::kFloat, x);
  kernels::ScaleBwd k{};
  fill_backward(k, c);
  fill_rows(k, call);
  k.winner = data<uint8_t>(c.saved.winner);
  k.n = data<float>(n);
  k.u = mutable_data(out.u);
  k.t = mutable_data<float>(out.t);
  at::Tensor db;
  if (c.needs.b) {
    db = floats({kernels::scale_bwd_blocks(k)}, x);
    k.db = mutable_data<float>(db);
  }
  launch("scale_bwd", kernels::scale_bwd, k, call);
  if (c.needs.b) out.db = db.sum();
  return out;
}

}  // namespace bcos::transform::glue::cuda
