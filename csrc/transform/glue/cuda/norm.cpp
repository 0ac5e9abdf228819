#include "transform/glue/cuda/norm.h"

#include <ATen/ops/empty_like.h>

namespace bcos::transform::glue::cuda {
namespace {

// Into `out` go the sums of squares, or with `root` their norms; of x v where v is defined.
void sum_products(const DeviceCall& call, const at::Tensor& x, const at::Tensor& v, const at::Tensor& out,
                  bool root) {
  kernels::PatchNormSquares k{};
  k.x = data(x);
  k.v = data(v);
  k.out = mutable_data<float>(out);
  k.rows = int(call.in_pixels() * call.spec.groups);
  k.CG = int(call.group_channels());
  k.root = root;
  k.formula = call.device_formula();
  k.dtype = dtype_of(x);
  k.plane = call.device_in_plane();
  launch("patch_norm_squares", kernels::patch_norm_squares, k, call);
}

// Into `out` go the sums of q over every patch, or with `root` the norms; of the patches of another window
// where one is given.
void sum_windows(const DeviceCall& call, const at::Tensor& q, const at::Tensor& out, bool root,
                 const kernels::Window& window) {
  kernels::PatchNormFwd k{};
  k.squares = data<float>(q);
  k.n = mutable_data<float>(out);
  k.rows = int(call.images * window.OH * window.OW * call.spec.groups);
  k.G = call.planes ? 1 : int(call.spec.groups);  // with planes each group is an image of its own
  k.window = window;
  k.formula = call.device_formula();
  k.root = root;
  launch("patch_norm_fwd", kernels::patch_norm_fwd, k, call);
}

void pool(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t, const at::Tensor& dx, bool add) {
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
  k.add = add;
  launch("patch_norm_bwd", kernels::patch_norm_bwd, k, call);
}

}  // namespace

at::Tensor squares(const DeviceCall& call, const at::Tensor& x) {
  const auto out = floats({call.in_pixels(), call.spec.groups}, x);
  sum_products(call, x, {}, out, false);
  return out;
}

at::Tensor norm(const DeviceCall& call, const at::Tensor& x, const at::Tensor& saved) {
  if (!call.has_norm()) return {};
  const auto n = saved.defined() ? saved : call.image(call.spec.groups, at::kFloat, x);
  if (call.window.pointwise())
    sum_products(call, x, {}, n, true);
  else
    sum_windows(call, squares(call, x), n, true, call.device_window());
  return n;
}

at::Tensor patch_products(const DeviceCall& call, const at::Tensor& x, const at::Tensor& v) {
  const auto sums = floats({call.in_pixels(), call.spec.groups}, x);
  sum_products(call, x, v, sums, false);
  if (call.window.pointwise()) return sums;
  const auto out = call.image(call.spec.groups, at::kFloat, x);
  sum_windows(call, sums, out, false, call.device_window());
  return out;
}

at::Tensor pooled(const DeviceCall& call, const at::Tensor& t) {
  if (call.window.pointwise()) return t;
  // Of stride 1, the outputs that read a pixel are themselves a window of as many taps.
  const auto w = call.device_window();
  const kernels::Window outputs{
      w.OH, w.OW, w.H, w.W, w.KH, w.KW, 1, 1, w.DH * (w.KH - 1) - w.PH, w.DW * (w.KW - 1) - w.PW, w.DH, w.DW};
  const auto out = floats({call.images, w.H, w.W}, t);
  sum_windows(call, t, out, false, outputs);
  return out;
}

at::Tensor norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t) {
  const auto dx = at::empty_like(x);
  pool(call, x, t, dx, false);
  return dx;
}

void add_norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t,
                       const at::Tensor& dx) {
  pool(call, x, t, dx, true);
}

}  // namespace bcos::transform::glue::cuda
