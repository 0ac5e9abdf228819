#include "transform/glue/cuda/norm.h"

namespace bcos::transform::glue::cuda {
namespace {

// Into `out` go the sums of squares, or with `root` their norms.
void sum_squares(const DeviceCall& call, const at::Tensor& x, const at::Tensor& out, bool root) {
  kernels::PatchNormSquares k{};
  k.x = data(x);
  k.out = mutable_data<float>(out);
  k.rows = int(call.in_pixels() * call.spec.groups);
  k.CG = int(call.group_channels());
  k.root = root;
  k.formula = call.device_formula();
  k.dtype = dtype_of(x);
  k.plane = call.device_in_plane();
  launch("patch_norm_squares", kernels::patch_norm_squares, k, call);
}

}  // namespace

at::Tensor squares(const DeviceCall& call, const at::Tensor& x) {
  const auto out = floats({call.in_pixels(), call.spec.groups}, x);
  sum_squares(call, x, out, false);
  return out;
}

at::Tensor norm(const DeviceCall& call, const at::Tensor& x, const at::Tensor& saved) {
  if (!call.has_norm()) return {};
  const auto n = saved.defined() ? saved : call.image(call.spec.groups, at::kFloat, x);
  if (call.window.pointwise()) {
    sum_squares(call, x, n, true);
    return n;
  }
  const auto q = squares(call, x);
  kernels::PatchNormFwd k{};
  k.squares = data<float>(q);
  k.n = mutable_data<float>(n);
  k.rows = int(call.pixels() * call.spec.groups);
  k.G = call.planes ? 1 : int(call.spec.groups);  // with planes each group is an image of its own
  k.window = call.device_window();
  k.formula = call.device_formula();
  launch("patch_norm_fwd", kernels::patch_norm_fwd, k, call);
  return n;
}

void add_norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t,
                       const at::Tensor& dx) {
  kernels::PatchNormBwd k{};
  k.dx = mutable_data(dx);
  k.x = data(x);
  k.t = data<float>(t);
  k.rows = int(call.in_pixels() * call.spec.groups);
  k.G = int(call.spec.groups);
  k.CG = int(call.group_channels());
  k.window = call.device_window();
  k.dtype = dtype_of(x);
  k.plane = call.device_in_plane();
  launch("patch_norm_bwd", kernels::patch_norm_bwd, k, call);
}

}  // namespace bcos::transform::glue::cuda
