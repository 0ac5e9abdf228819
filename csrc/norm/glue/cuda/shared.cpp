// Norms whose statistics values of different positions share: over the batch, all values or groups.
#include <ATen/ops/add.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/pow.h>

#include "norm/glue/cuda/passes.h"

namespace bcos::norm::glue::cuda {
namespace {

template <typename A>
void form_statistics(const ForwardPass& f) {
  const auto& call = f.call;
  kernels::MomentsPass<A> k{};
  k.x = data(f.x);
  k.dtype = dtype_of(f.x);
  k.shape = call.spec.over == Over::All ? call.device_run(k.dtype) : call.device_shape(k.dtype);
  constexpr int64_t kValues = sizeof(kernels::Partial<A>) / sizeof(A);
  const auto partial = new_sums({k.shape.shares(), k.shape.C, kValues}, f.x);
  k.partial = mutable_data<kernels::Partial<A>>(partial);
  launch("moments", kernels::moments<A>, k, call);
  kernels::JoinMoments<A> j{};
  j.partial = k.partial;
  j.mean = mutable_data<A>(f.mean);
  j.var = mutable_data<A>(f.var);
  j.shape = k.shape;
  launch("join_moments", kernels::join_moments<A>, j, call);
}

// The sums of every share, [units, splits, C, 2]; without x those of grad alone.
template <typename A>
at::Tensor share_sums(const BackwardPass& b, const kernels::Shape& shape, bool products) {
  const auto out = new_sums({shape.shares(), shape.C, 2}, b.x);
  kernels::SumsPass<A> k{};
  k.grad = data(b.grad);
  k.x = products ? data(b.x) : nullptr;
  k.statistics = b.call.device_statistics<A>(b.mean, b.var);
  k.partial = mutable_data<kernels::Sums<A>>(out);
  k.shape = shape;
  k.dtype = dtype_of(b.x);
  k.out_dtype = dtype_of(b.grad);
  launch("sums", kernels::sums<A>, k, b.call);
  return out;
}

// The sums of every set with γ, [sets, 2]; undefined unless `of_sets`. And dγ and dβ where they are needed.
template <typename A>
at::Tensor add_shares(const BackwardPass& b, const kernels::Shape& shape, bool of_sets, bool products) {
  if (!of_sets && !b.needs.weight && !b.needs.bias) return {};
  const auto partial = share_sums<A>(b, shape, products);
  at::Tensor sums;
  if (of_sets) sums = new_sums({shape.sets(), 2}, b.x);
  const bool at_once = !shape.per_image && shape.group_channels() == 1;
  if (of_sets && !at_once) {
    kernels::SetSums<A> k{};
    k.partial = data<kernels::Sums<A>>(partial);
    k.weight = b.call.factor(b.weight);
    k.sums = mutable_data<kernels::Sums<A>>(sums);
    k.shape = shape;
    launch("set_sums", kernels::set_sums<A>, k, b.call);
  }
  if (b.needs.weight || b.needs.bias || (of_sets && at_once))
    add_channels(b, partial, shape, b.var, at_once ? sums : at::Tensor());
  return sums;
}

template <typename A>
void apply(const ForwardPass& f, const at::Tensor& y) {
  const auto& call = f.call;
  kernels::Apply<A> k{};
  k.x = data(f.x);
  k.y = mutable_data(y);
  k.statistics = call.device_statistics<A>(f.mean, f.var);
  k.weight = call.factor(f.weight);
  k.bias = call.factor(f.bias);
  k.dtype = dtype_of(f.x);
  k.out_dtype = dtype_of(y);
  k.shape = call.device_shape(k.dtype);
  launch("apply", kernels::apply<A>, k, call);
}

}  // namespace

void shared_forward(const ForwardPass& f, const at::Tensor& y) {
  by_sums(f.call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    if (!f.call.given) form_statistics<A>(f);
    apply<A>(f, y);
  });
}

void add_channels(const BackwardPass& b, const at::Tensor& partial, const kernels::Shape& shape,
                  const at::Tensor& var, const at::Tensor& sums) {
  by_sums(b.call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    kernels::ChannelSums<A> k{};
    k.partial = data<kernels::Sums<A>>(partial);
    k.statistics = b.call.device_statistics<A>(b.mean, var);
    k.weight = b.call.factor(b.weight);
    k.dweight = mutable_data<A>(b.dweight);
    k.dbias = mutable_data<A>(b.dbias);
    k.sums = mutable_data<kernels::Sums<A>>(sums);
    k.shape = shape;
    launch("channel_sums", kernels::channel_sums<A>, k, b.call);
  });
}

void shared_backward(const BackwardPass& b, const at::Tensor& dx) {
  const auto& call = b.call;
  const auto dtype = dtype_of(b.x);
  const auto shape = call.device_shape(dtype);
  by_sums(call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    const auto sums =
        add_shares<A>(b, shape, b.through_var() || b.through_mean(), b.needs.weight || b.through_var());
    if (!b.of_x()) return;
    kernels::GradientPass<A> k{};
    k.grad = data(b.grad);
    k.x = b.through_var() || b.dvar.defined() ? data(b.x) : nullptr;
    k.dvar = data<A>(b.dvar);
    k.statistics = call.device_statistics<A>(b.mean, b.var);
    k.weight = b.call.factor(b.weight);
    k.sums = data<kernels::Sums<A>>(sums);
    k.frozen = !b.through_var();
    k.dx = mutable_data(dx);
    k.shape = shape;
    k.count = A(call.count());
    k.dtype = dtype;
    k.out_dtype = dtype_of(b.grad);
    if (b.needs.map) {
      k.map = mutable_data<A>(b.map);
      return launch("gradient_map", kernels::gradient_map<A>, k, call);
    }
    launch("input_gradient", kernels::input_gradient<A>, k, call);
  });
}

at::Tensor shared_second(BackwardPass b, const at::Tensor& dgrad, bool of_var) {
  const auto& call = b.call;
  at::Tensor sums;
  by_sums(call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    if (call.spec.centered && !call.given) {
      b.mean = at::empty_like(b.var);
      form_statistics<A>({call, b.x, {}, {}, b.mean, at::empty_like(b.var)});
    }
    apply<A>({call, b.x, b.weight, {}, b.mean, b.var}, dgrad);
    sums = add_shares<A>(b, call.device_shape(dtype_of(b.x)), of_var, true);
  });
  if (!of_var) return {};
  const auto cubes = at::pow(at::add(b.var, call.spec.eps), -1.5);  // r^3
  return at::mul(at::mul(sums.select(-1, 0).view_as(cubes), cubes), -0.5);
}

}  // namespace bcos::norm::glue::cuda
