#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include <algorithm>

#include "transform/glue/cuda/patch_norm.h"
#include "transform/glue/cuda/products.h"
#include "transform/glue/cuda/scale.h"

namespace bcos::transform::glue::cuda {
namespace {

constexpr int64_t kFlatBelow =
    16;  // channels of a group, below which taps and channels are walked as one axis
constexpr int64_t kRowsOfShare = 256, kMostShares = 64;
constexpr int kBlocksOfProcessor = 4;

}  // namespace

int shares(int64_t rows, int64_t blocks) {
  const int64_t wanted = ceil_div(int64_t(multiprocessors()) * kBlocksOfProcessor, blocks);
  return int(std::clamp<int64_t>(std::min(wanted, ceil_div(rows, kRowsOfShare)), 1, kMostShares));
}

void implicit_gemm_forward(const ForwardCall& c) {
  const auto& call = c.call;
  // Over few channels, and over one pixel, the product sums the squares of its own operand instead.
  const bool sums_window = call.has_norm() && call.window.taps() > 1 && call.group_channels() >= kFlatBelow;
  const auto q = sums_window ? squares(call, c.x) : at::Tensor();
  kernels::ImplicitGemmFwd k{};
  fill_forward<float>(k, c);
  k.x = data(c.x);
  k.w = data(c.weights.operand);
  k.squares = data<float>(q);
  k.n = mutable_data<float>(c.out.n);
  k.winner = mutable_data<uint8_t>(c.out.winner);
  k.shape = call.device_shape();
  k.tf32 = call.tf32;
  k.large = call.large;
  launch("implicit_gemm_fwd", kernels::implicit_gemm_fwd, k, call);
}

Parts implicit_gemm_backward(const BackwardCall& c, bool fused) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  Parts out;
  ScaleGradients given;
  // Only the scale's own kernel forms db, and the norm where it was not saved.
  const bool fits = !c.needs.b && (c.saved.n.defined() || !call.has_norm());
  if (!fused || !fits) given = scale_backward(c);
  out.db = given.db;
  const auto fill = [&](auto& k) {
    fill_backward<float>(k, c);
    k.u = data(given.u);
    k.winner = data<uint8_t>(c.saved.winner);
    k.n = data<float>(c.saved.n);
    k.x = data(x);
    k.shape = call.device_shape();
    k.tf32 = call.tf32;
    k.large = call.large;
  };
  if (c.needs.x) {
    out.dx = at::empty_like(x);
    kernels::ImplicitGemmDgrad k{};
    fill(k);
    k.t = data<float>(given.t);
    k.w = data(c.weights.operand);
    k.dx = mutable_data(out.dx);
    launch("implicit_gemm_dgrad", kernels::implicit_gemm_dgrad, k, call);
  }
  if (c.needs.weight || c.needs.bias) {
    const int64_t side = call.large ? 128 : 64, taps = call.window.taps();
    const int64_t tiles = ceil_div(call.group_filters(), side) * ceil_div(call.group_channels(), side);
    kernels::ImplicitGemmWgrad k{};
    fill(k);
    k.splits = shares(call.pixels(), tiles * call.spec.groups * taps);
    out.partial = new_sums({k.splits, call.filters, taps * call.group_channels()}, x);
    if (c.needs.bias) out.dbias = new_sums({k.splits, call.filters}, x);
    k.dw = mutable_data<float>(out.partial);
    k.dbias = mutable_data<float>(out.dbias);
    launch("implicit_gemm_wgrad", kernels::implicit_gemm_wgrad, k, call);
  }
  if (out.dbias.defined()) out.dbias = out.dbias.sum(0);
  return out;
}

}  // namespace bcos::transform::glue::cuda
