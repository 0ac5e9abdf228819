#include "transform/glue/cuda/scale.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>

#include "transform/glue/cuda/patch_norm.h"

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
  by_sums(c.call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::ScaleFwd<A> k{};
    fill_forward<A>(k, c);
    fill_rows(k, c.call);
    k.z = data(z);
    k.n = data<A>(n);
    k.winner = mutable_data<uint8_t>(c.out.winner);
    launch("scale_fwd", kernels::scale_fwd<A>, k, c.call);
  });
}

ScaleGradients scale_backward(const BackwardCall& c) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  const auto n = c.saved.n.defined() ? c.saved.n : norm(call, x, {});
  ScaleGradients out{call.image(call.filters, call.dtype, x, call.rows), {}, {}};
  if (c.saved.norm_gradient(call)) out.t = call.image(call.spec.groups, call.sums(), x);
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::ScaleBwd<A> k{};
    fill_backward<A>(k, c);
    fill_rows(k, call);
    k.scales = k.rows;
    k.rows *= int(call.rows);
    k.winner = data<uint8_t>(c.saved.winner);
    k.n = data<A>(n);
    k.u = mutable_data(out.u);
    k.t = mutable_data<A>(out.t);
    k.dl = data(c.saved.dl);
    k.dn = data<A>(c.saved.dn);
    k.map = data<A>(c.saved.map);
    k.of_n = call.divides_x;
    at::Tensor db;
    if (c.needs.b) {
      db = new_sums({kernels::scale_bwd_blocks(k)}, x);
      k.db = mutable_data<A>(db);
    }
    launch("scale_bwd", kernels::scale_bwd<A>, k, call);
    if (c.needs.b) out.db = db.sum();
  });
  return out;
}

ScaleGradients scale_second(const SecondCall& c, const at::Tensor& z, const Norms& norms, SecondParts& out) {
  const auto& call = c.call;
  const auto& saved = c.saved;
  ScaleGradients found{call.image(call.filters, call.dtype, c.v), {}, {}};
  out.grad = at::empty_like(saved.grad);
  if (call.has_norm() && !c.needs.detached) {
    out.l = at::empty_like(saved.grad);
    for (auto* t : {&out.n, &found.t}) *t = call.image(call.spec.groups, call.sums(), c.v);
  }
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::ScaleSecond<A> k{};
    k.grad = data(saved.grad);
    k.v = data(call.saves_l() ? saved.l : saved.y);
    k.winner = data<uint8_t>(saved.winner);
    k.z = data(z);
    k.n = data<A>(norms.n);
    k.root = data<A>(norms.root);
    k.m = data<A>(norms.m);
    k.alpha = data<A>(c.weights.alpha);
    k.dgrad = mutable_data(out.grad);
    k.u = mutable_data(found.u);
    k.dl = mutable_data(out.l);
    k.dn = mutable_data<A>(out.n);
    k.t = mutable_data<A>(found.t);
    k.frozen = !call.norm_gradient();
    k.formula = call.device_formula<A>();
    k.dtype = dtype_of(z);
    k.out_dtype = dtype_of(saved.grad);
    fill_rows(k, call);
    launch("scale_second", kernels::scale_second<A>, k, call);
  });
  return found;
}

}  // namespace bcos::transform::glue::cuda
