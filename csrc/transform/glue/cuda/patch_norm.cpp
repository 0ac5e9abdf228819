#include "transform/glue/cuda/patch_norm.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>

#include <algorithm>

namespace bcos::transform::glue::cuda {
namespace {

// Into `out` go the sums of squares, or with `root` their norms; of x v where v is defined.
void sum_products(const DeviceCall& call, const at::Tensor& x, const at::Tensor& v, const at::Tensor& out,
                  bool root) {
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::PatchNormSquares<A> k{};
    k.x = data(x);
    k.v = data(v);
    k.out = mutable_data<A>(out);
    k.rows = int(call.in_pixels() * call.spec.groups);
    k.CG = int(call.group_channels());
    k.root = root;
    k.formula = call.device_formula<A>();
    k.dtype = dtype_of(x);
    k.plane = call.device_in_plane();
    launch("patch_norm_squares", kernels::patch_norm_squares<A>, k, call);
  });
}

// Into `out` go the sums of q over the windows of a plane, or with `root` the norms.
void sum_planes(const DeviceCall& call, const Plane& plane, const at::Tensor& q, const at::Tensor& out,
                bool root) {
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::PatchNormFwd<A> k{};
    k.squares = data<A>(q);
    k.n = mutable_data<A>(out);
    k.rows = int(out.numel());
    k.G = call.planes ? 1 : int(call.spec.groups);  // with planes each group is an image of its own
    k.window = call.device_window(plane);
    k.formula = call.device_formula<A>();
    k.root = root;
    launch("patch_norm_fwd", kernels::patch_norm_fwd<A>, k, call);
  });
}

// Sets what the patch norm takes as 0 in q, which has a value for each input pixel and group.
void clear_border(const DeviceCall& call, const at::Tensor& q) {
  const auto& border = call.spec.border;
  if (border.empty()) return;
  auto shape = call.in_shape(call.spec.groups);
  if (!call.planes) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  const auto image = q.view(shape);
  for (size_t i = 0; i < border.size(); i++) {
    const int64_t axis = (call.planes ? 2 : 1) + int64_t(i) / 2;
    image.narrow(axis, i % 2 ? image.size(axis) - border[i] : 0, border[i]).zero_();
  }
}

// Into `out` go the sums of q over every patch, or with `root` the norms.
void sum_windows(const DeviceCall& call, const at::Tensor& q, const at::Tensor& out, bool root) {
  const auto& w = call.window;
  clear_border(call, q);
  if (w.is_plane()) return sum_planes(call, w.plane, q, out, root);
  const auto across = w.across();
  const auto half = new_sums({call.images * call.spec.groups * w.depth.in * across.columns.in}, q);
  sum_planes(call, w.plane, q, half, false);
  sum_planes(call, across, half, out, root);
}

// Whether one kernel formed n and the weights, as it does where it takes the call.
bool form_both(const DeviceCall& call, const Weights& weights, const at::Tensor& x, const at::Tensor& n) {
  const auto& w = call.window;
  if (call.spec.groups > 1 || call.planes || !w.is_plane() || w.bordered) return false;
  if (weights.inverse.defined() && weights.source.scalar_type() != call.dtype) return false;
  bool formed = false;
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::BothNorms<A> k{};
    k.weights = weight_norm<A>(call, weights);
    k.x = data(x);
    k.n = mutable_data<A>(n);
    k.N = int(call.images);
    k.C = int(call.channels);
    k.window = call.device_window();
    k.formula = call.device_formula<A>();
    k.dtype = dtype_of(x);
    if (!kernels::fits_both_norms(k)) return;
    launch("both_norms", kernels::both_norms<A>, k, call);
    formed = true;
  });
  return formed;
}

// The rows of images of which the kernels make dx, and where their outputs lie.
struct Images {
  Plane plane;
  int64_t groups, channels;  // of an image, and of a group
};

void multiply(const DeviceCall& call, const Images& images, const at::Tensor& x, const at::Tensor& t,
              const at::Tensor& dx, bool add, const at::Tensor& root = {}) {
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::PatchNormBwd<A> k{};
    k.dx = mutable_data(dx);
    k.x = data(x);
    k.t = data<A>(t);
    k.rows = int(x.numel() / images.channels);
    k.G = int(images.groups);
    k.CG = int(images.channels);
    k.window = call.device_window(images.plane);
    k.dtype = dtype_of(x);
    k.plane = call.planes ? int(images.plane.rows.in * images.plane.columns.in) : 0;
    k.add = add;
    k.root = data<A>(root);
    launch("patch_norm_bwd", kernels::patch_norm_bwd<A>, k, call);
  });
}

// For each pixel of a plane and group, the sum of t over the outputs that read it.
at::Tensor spread_planes(const DeviceCall& call, const Plane& plane, const at::Tensor& t) {
  const int64_t out = plane.rows.out * plane.columns.out;
  const auto ones = at::ones({t.numel() / out * plane.rows.in * plane.columns.in}, t.options());
  const auto sums = at::empty_like(ones);
  multiply(call, {plane, call.planes ? 1 : call.spec.groups, 1}, ones, t, sums, false);
  return sums;
}

// Into dx goes x * (sum of t over the outputs that read the pixel), or with `add` it is added. Where root is
// defined, the window is one pixel.
void pool(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t, const at::Tensor& dx, bool add,
          const at::Tensor& root = {}) {
  const auto& w = call.window;
  Images images{w.plane, call.spec.groups, call.group_channels()};
  if (w.is_plane() && !w.bordered) return multiply(call, images, x, t, dx, add, root);
  const auto sums = spread_planes(call, w.plane, w.is_plane() ? t : spread_planes(call, w.across(), t));
  clear_border(call, sums);
  const int64_t pixels = call.in_plane();
  images.plane = {{}, {1, 1, 0, 1, pixels, pixels}};
  multiply(call, images, x, sums, dx, add);
}

at::Tensor new_norm(const DeviceCall& call, const at::Tensor& x, const at::Tensor& saved) {
  return saved.defined() ? saved : call.image(call.spec.groups, call.sums(), x);
}

}  // namespace

at::Tensor squares(const DeviceCall& call, const at::Tensor& x) {
  const auto out = new_sums({call.in_pixels(), call.spec.groups}, x);
  sum_products(call, x, {}, out, false);
  return out;
}

at::Tensor form_with_norm(const DeviceCall& call, const Weights& weights, const at::Tensor& x,
                          const at::Tensor& saved) {
  if (call.has_norm()) {
    const auto n = new_norm(call, x, saved);
    if (form_both(call, weights, x, n)) return n;
  }
  form(call, weights);
  return norm(call, x, saved);
}

at::Tensor norm(const DeviceCall& call, const at::Tensor& x, const at::Tensor& saved) {
  if (!call.has_norm()) return {};
  const auto n = new_norm(call, x, saved);
  if (call.window.pointwise())
    sum_products(call, x, {}, n, true);
  else
    sum_windows(call, squares(call, x), n, true);
  return n;
}

at::Tensor roots(const DeviceCall& call, const at::Tensor& x) {
  if (!call.divides_x) return {};
  auto alone = call;
  alone.spec.eps_outside = 0;
  return norm(alone, x, {});
}

at::Tensor patch_products(const DeviceCall& call, const at::Tensor& x, const at::Tensor& v) {
  const auto sums = new_sums({call.in_pixels(), call.spec.groups}, x);
  sum_products(call, x, v, sums, false);
  if (call.window.pointwise()) return sums;
  const auto out = call.image(call.spec.groups, call.sums(), x);
  sum_windows(call, sums, out, false);
  return out;
}

at::Tensor pooled(const DeviceCall& call, const at::Tensor& t) {
  if (call.window.pointwise()) return t;
  const auto& plane = call.window.plane;
  const auto out = new_sums({call.images, plane.rows.in, plane.columns.in}, t);
  sum_planes(call, plane.reversed(), t, out, false);
  return out;
}

at::Tensor norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t) {
  const auto dx = at::empty_like(x);
  pool(call, x, t, dx, false);
  return dx;
}

void add_norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t,
                       const at::Tensor& dx) {
  pool(call, x, t, dx, true, roots(call, x));
}

}  // namespace bcos::transform::glue::cuda
