#include "host/cuda/layer.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sum.h>

#include <algorithm>

#include "host/cuda/weights.h"

namespace bcos::host::gpu {
namespace {

constexpr int64_t kFlatBelow = 16;  // channels of a group: the walk over taps and channels is one
constexpr int64_t kRowsOfShare = 256, kMostShares = 64;
constexpr int kBlocksOfProcessor = 4;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Shares of the rows that a weight gradient sums on their own, so that its blocks fill the device.
int shares(int64_t rows, int64_t blocks) {
  const int64_t wanted = ceil_div(int64_t(multiprocessors()) * kBlocksOfProcessor, blocks);
  return int(std::clamp<int64_t>(std::min(wanted, ceil_div(rows, kRowsOfShare)), 1, kMostShares));
}

at::Tensor floats(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

// Sums of squares of each pixel and group; into `norm`, where that is defined, their norms.
at::Tensor squares(const Problem& p, const at::Tensor& x, const at::Tensor& norm = {}) {
  cuda::PatchNormSquares k{};
  const auto out = norm.defined() ? norm : floats({p.in_pixels(), p.groups}, x);
  k.x = data(x);
  k.out = mutable_data<float>(out);
  k.rows = int(p.in_pixels() * p.groups);
  k.CG = int(p.group_channels);
  k.root = norm.defined();
  k.formula = p.cuda_formula({});
  k.dtype = dtype_of(x);
  k.plane = p.in_plane();
  BCOS_LAUNCH(patch_norm_squares, k, p);
  return out;
}

// The patch norm, in `saved` if that is defined; undefined for b = 1.
at::Tensor norm(const Problem& p, const at::Tensor& x, const at::Tensor& saved) {
  if (!p.formula.has_norm()) return {};
  const auto n = saved.defined() ? saved : p.image(p.groups, at::kFloat, x);
  if (p.window.pointwise()) return squares(p, x, n);
  const auto q = squares(p, x);
  cuda::PatchNormFwd k{};
  k.squares = data<float>(q);
  k.n = mutable_data<float>(n);
  k.rows = int(p.pixels() * p.groups);
  k.G = p.planes ? 1 : int(p.groups);  // planes: a group is an image of its own
  k.window = p.cuda_window();
  k.formula = p.cuda_formula({});
  BCOS_LAUNCH(patch_norm_fwd, k, p);
  return n;
}

// ---- forward

struct ForwardCall {
  const Problem& p;
  at::Tensor x, bias, b;
  Weights weights;
  Outputs& out;
  const Way& way;

  template <typename Params>
  void fill(Params& k) const {
    k.alpha = data<float>(weights.alpha);
    k.bias = data(bias);
    k.y = mutable_data(out.y);
    k.l = mutable_data(out.l);
    k.formula = p.cuda_formula(b);
    k.dtype = dtype_of(x);
    if (bias.defined()) k.bias_dtype = dtype_of(bias);
    k.out_dtype = dtype_of(out.y);
  }
};

void vendor_forward(const ForwardCall& c) {
  const auto& p = c.p;
  const auto& g = p.window.g;
  const auto z = p.linear ? at::matmul(c.x.flatten(1), c.weights.operand.flatten(1).t())
                          : p.dense(at::convolution(c.x, c.weights.operand, std::nullopt, g.stride, g.padding,
                                                    g.dilation, false, {0, 0}, g.groups));
  const auto n = norm(p, c.x, c.out.n);
  cuda::ScaleFwd k{};
  c.fill(k);
  k.z = data(z);
  k.n = data<float>(n);
  k.winner = mutable_data<uint8_t>(c.out.winner);
  k.rows = int(p.pixels() * p.groups);
  k.G = int(p.groups);
  k.OG = int(p.outputs() / p.groups);
  k.max_out = int(p.max_out);
  k.plane = p.plane();
  BCOS_LAUNCH(scale_fwd, k, p);
}

void depthwise_forward(const ForwardCall& c) {
  cuda::DepthwiseFwd k{};
  c.fill(k);
  k.x = data(c.x);
  k.w = data(c.weights.operand);
  k.N = int(c.p.images);
  k.C = int(c.p.groups);
  k.window = c.p.cuda_window();
  BCOS_LAUNCH(depthwise_fwd, k, c.p);
}

void implicit_gemm_forward(const ForwardCall& c) {
  const auto& p = c.p;
  // over few channels, and over one pixel, the product's own operand is summed: q would be read for nothing
  const bool sums_window = p.formula.has_norm() && p.taps() > 1 && p.group_channels >= kFlatBelow;
  const auto q = sums_window ? squares(p, c.x) : at::Tensor();
  cuda::ImplicitGemmFwd k{};
  c.fill(k);
  k.x = data(c.x);
  k.w = data(c.weights.operand);
  k.squares = data<float>(q);
  k.n = mutable_data<float>(c.out.n);
  k.winner = mutable_data<uint8_t>(c.out.winner);
  k.shape = p.cuda_shape();
  k.tf32 = c.way.tf32;
  k.large = c.way.large;
  BCOS_LAUNCH(implicit_gemm_fwd, k, p);
}

// ---- backward. Each candidate gives dx, shares of the gradient of the products' operand, dbias and db.

struct BackwardCall {
  const Problem& p;
  const Saved& saved;
  const Weights& weights;
  at::Tensor b;
  const Needs& needs;
  const Way& way;
  bool detached;  // the scale is a constant

  at::Tensor v() const { return p.formula.saves_l() ? saved.l : saved.y; }
};

struct Parts {
  at::Tensor dx, partial, dbias, db;
};

// What forms u = dL/dz and t = dL/dn * dn/dx / x in passing.
template <typename Params>
void fill_upstream(Params& k, const BackwardCall& c) {
  const auto v = c.v();
  k.grad = data(c.saved.grad);
  k.v = data(v);
  k.alpha = data<float>(c.weights.alpha);
  k.detached = c.detached;
  k.formula = c.p.cuda_formula(c.b);
  k.dtype = dtype_of(c.saved.x);
  k.out_dtype = dtype_of(c.saved.grad);
}

struct Upstream {
  at::Tensor u, t, db;  // t undefined where detached, db where not wanted
};

Upstream scale_backward(const BackwardCall& c) {
  const auto& p = c.p;
  const auto n = c.saved.n.defined() ? c.saved.n : norm(p, c.saved.x, {});
  Upstream out{p.image(p.filters(), c.saved.x.scalar_type(), c.saved.x), {}, {}};
  if (!c.detached) out.t = p.image(p.groups, at::kFloat, c.saved.x);
  cuda::ScaleBwd k{};
  fill_upstream(k, c);
  k.winner = data<uint8_t>(c.saved.winner);
  k.n = data<float>(n);
  k.u = mutable_data(out.u);
  k.t = mutable_data<float>(out.t);
  k.rows = int(p.pixels() * p.groups);
  k.G = int(p.groups);
  k.OG = int(p.outputs() / p.groups);
  k.max_out = int(p.max_out);
  k.plane = p.plane();
  at::Tensor db;
  if (c.needs.b) {
    db = floats({cuda::scale_bwd_blocks(k)}, c.saved.x);
    k.db = mutable_data<float>(db);
  }
  BCOS_LAUNCH(scale_bwd, k, p);
  if (c.needs.b) out.db = db.sum();
  return out;
}

Parts vendor_backward(const BackwardCall& c) {
  const auto& p = c.p;
  const auto& g = p.window.g;
  const auto& x = c.saved.x;
  const auto& operand = c.weights.operand;
  const auto [u, t, db] = scale_backward(c);
  Parts out{{}, {}, {}, db};
  if (c.needs.bias) out.dbias = u.sum({0, 2, 3}, false, at::kFloat);
  if (p.linear) {
    if (c.needs.x) out.dx = at::matmul(u.flatten(1), operand.flatten(1)).view(x.sizes());
    if (c.needs.weight) out.partial = at::matmul(u.flatten(1).t(), x.flatten(1)).contiguous();
  } else if (c.needs.x || c.needs.weight) {
    const auto [dx, dw, unused] =
        at::convolution_backward(u, x, operand, std::nullopt, g.stride, g.padding, g.dilation, false, {0, 0},
                                 g.groups, {c.needs.x, c.needs.weight, false});
    out.dx = p.dense(dx);
    out.partial = p.dense(dw);
  }
  if (!c.needs.x || c.detached) return out;
  cuda::PatchNormBwd k{};
  k.dx = mutable_data(out.dx);
  k.x = data(x);
  k.t = data<float>(t);
  k.rows = int(p.in_pixels() * p.groups);
  k.G = int(p.groups);
  k.CG = int(p.group_channels);
  k.window = p.cuda_window();
  k.dtype = dtype_of(x);
  k.plane = p.in_plane();
  BCOS_LAUNCH(patch_norm_bwd, k, p);
  return out;
}

Parts depthwise_backward(const BackwardCall& c) {
  const auto& p = c.p;
  const auto& x = c.saved.x;
  Parts out;
  const auto u = p.image(p.filters(), x.scalar_type(), x);
  at::Tensor t;
  if (!c.detached) t = p.image(p.groups, at::kFloat, x);
  cuda::DepthwiseBwd k{};
  fill_upstream(k, c);
  k.x = data(x);
  k.u = mutable_data(u);
  k.t = mutable_data<float>(t);
  k.N = int(p.images);
  k.C = int(p.groups);
  k.window = p.cuda_window();
  BCOS_LAUNCH(depthwise_bwd, k, p);
  if (c.needs.x) {
    out.dx = at::empty_like(x);
    cuda::DepthwiseDgrad d{};
    d.u = data(u);
    d.t = data<float>(t);
    d.w = data(c.weights.operand);
    d.x = data(x);
    d.dx = mutable_data(out.dx);
    d.N = k.N;
    d.C = k.C;
    d.window = k.window;
    d.dtype = k.dtype;
    BCOS_LAUNCH(depthwise_dgrad, d, p);
  }
  if (c.needs.weight || c.needs.bias) {
    cuda::DepthwiseWgrad w{};
    w.splits = shares(p.pixels(), ceil_div(p.groups, 32) * p.window.kh);
    out.partial = floats({w.splits, p.filters(), p.taps()}, x);
    if (c.needs.bias) out.dbias = floats({w.splits, p.filters()}, x);
    w.u = data(u);
    w.x = data(x);
    w.dw = mutable_data<float>(out.partial);
    w.dbias = mutable_data<float>(out.dbias);
    w.N = k.N;
    w.C = k.C;
    w.window = k.window;
    w.dtype = k.dtype;
    BCOS_LAUNCH(depthwise_wgrad, w, p);
  }
  if (out.dbias.defined()) out.dbias = out.dbias.sum(0);
  return out;
}

Parts implicit_gemm_backward(const BackwardCall& c) {
  const auto& p = c.p;
  const auto& x = c.saved.x;
  Parts out;
  Upstream up;
  // only the scale's own kernel forms db, and the norm where it was not saved
  const bool fused =
      c.way.candidate == Candidate::OnePass && !c.needs.b && (c.saved.n.defined() || !p.formula.has_norm());
  if (!fused) up = scale_backward(c);
  out.db = up.db;
  const auto fill = [&](auto& k) {
    fill_upstream(k, c);
    k.u = data(up.u);
    k.winner = data<uint8_t>(c.saved.winner);
    k.n = data<float>(c.saved.n);
    k.x = data(x);
    k.shape = p.cuda_shape();
    k.tf32 = c.way.tf32;
    k.large = c.way.large;
  };
  if (c.needs.x) {
    out.dx = at::empty_like(x);
    cuda::ImplicitGemmDgrad k{};
    fill(k);
    k.t = data<float>(up.t);
    k.w = data(c.weights.operand);
    k.dx = mutable_data(out.dx);
    BCOS_LAUNCH(implicit_gemm_dgrad, k, p);
  }
  if (c.needs.weight || c.needs.bias) {
    const int64_t side = c.way.large ? 128 : 64;
    const int64_t tiles = ceil_div(p.group_filters, side) * ceil_div(p.group_channels, side);
    cuda::ImplicitGemmWgrad k{};
    fill(k);
    k.splits = shares(p.pixels(), tiles * p.groups * p.taps());
    out.partial = floats({k.splits, p.filters(), p.taps() * p.group_channels}, x);
    if (c.needs.bias) out.dbias = floats({k.splits, p.filters()}, x);
    k.dw = mutable_data<float>(out.partial);
    k.dbias = mutable_data<float>(out.dbias);
    BCOS_LAUNCH(implicit_gemm_wgrad, k, p);
  }
  if (out.dbias.defined()) out.dbias = out.dbias.sum(0);
  return out;
}

at::Tensor exponent(const std::optional<at::Tensor>& b) {
  return b ? aligned(b->to(at::kFloat)) : at::Tensor();
}

}  // namespace

Outputs forward(const Problem& p, const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& b,
                at::ScalarType out_dtype, const Way& way) {
  const OnDeviceOf guard(x);
  Outputs out;
  out.y = p.image(p.outputs(), out_dtype, x);
  if (p.saves_norm()) out.n = p.image(p.groups, at::kFloat, x);
  if (p.formula.saves_l()) out.l = p.image(p.outputs(), out_dtype, x);
  if (p.max_out > 1) out.winner = p.image(p.outputs(), at::kByte, x);
  if (out.y.numel() == 0) return out;
  const auto serve = way.candidate == Candidate::Vendor ? vendor_forward
                     : p.depthwise()                    ? depthwise_forward
                                                        : implicit_gemm_forward;
  serve({p, p.dense(x), bias ? aligned(bias->contiguous()) : at::Tensor(), exponent(b),
         prepare(p, weight, x.scalar_type(), bias.has_value()), out, way});
  return out;
}

Gradients backward(const Problem& p, const Saved& given, const Needs& needs, const Way& way) {
  const OnDeviceOf guard(given.x);
  if (given.x.numel() == 0 || given.grad.numel() == 0) return Gradients::zeros(given, needs);
  const Saved saved{p.dense(given.grad), p.dense(given.x), given.weight,          p.dense(given.y),
                    p.dense(given.n),    p.dense(given.l), p.dense(given.winner), given.b};
  const auto weights = prepare(p, given.weight, given.x.scalar_type(), needs.bias);
  // a depthwise layer's own kernels form no db, and a product of one channel would waste its tile
  const bool vendor = way.candidate == Candidate::Vendor || (p.depthwise() && needs.b);
  const auto serve = vendor ? vendor_backward : p.depthwise() ? depthwise_backward : implicit_gemm_backward;
  const bool detached = p.formula.explain || !p.formula.has_norm();
  const auto parts = serve({p, saved, weights, exponent(given.b), needs, way, detached});
  Gradients out;
  if (needs.x) out.x = parts.dx;
  if (needs.weight) out.weight = weight_gradient(p, weights, parts.partial);
  if (needs.bias) out.bias = parts.dbias.to(given.weight.scalar_type());
  if (needs.b) out.b = parts.db.to(given.b->scalar_type()).view(given.b->sizes());
  return out;
}

}  // namespace bcos::host::gpu
