// Norms at positions, and over the channels of tokens.
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "norm/glue/cuda/passes.h"

namespace bcos::norm::glue::cuda {
namespace {

// Rows of a block in the backward: few enough to keep the GPU busy, and enough to make few shares of dγ and
// dβ.
int64_t rows_of_block(const DeviceCall& call) {
  constexpr int64_t kBlocks = 8;  // of a multiprocessor
  constexpr int64_t kLeast = 8;
  return std::max((call.batch * call.positions - 1) / (multiprocessors() * kBlocks) + 1, kLeast);
}

template <typename Params>
void fill(Params& k, const DeviceCall& call) {
  k.N = int(call.batch);
  k.C = int(call.channels);
  k.P = int(call.positions);
  k.planes = call.planes;
}

// y, with the variance `given` in place of that of x unless it is undefined.
void launch_forward(const ForwardPass& f, const at::Tensor& given, const at::Tensor& y) {
  by_sums(f.call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    kernels::PositionsFwd<A> k{};
    fill(k, f.call);
    k.x = data(f.x);
    k.y = mutable_data(y);
    k.mean = mutable_data<A>(f.mean);
    k.var = mutable_data<A>(f.var);
    k.given = data<A>(given);
    k.weight = f.call.factor(f.weight);
    k.bias = f.call.factor(f.bias);
    k.eps = A(f.call.spec.eps);
    k.centered = f.call.spec.centered;
    k.dtype = dtype_of(f.x);
    k.out_dtype = dtype_of(y);
    launch("positions_fwd", kernels::positions_fwd<A>, k, f.call);
  });
}

// dx, or where that is undefined the gradient of var; and the sums of `b`.
void launch_backward(const BackwardPass& b, const at::Tensor& dx, const at::Tensor& var_gradient) {
  const auto& call = b.call;
  const bool adds = b.needs.weight || b.needs.bias;
  by_sums(call.dtype, [&](auto type) {
    using A = typename decltype(type)::type;
    kernels::PositionsBwd<A> k{};
    fill(k, call);
    k.each = rows_of_block(call);
    k.grad = data(b.grad);
    k.x = adds || !call.frozen || b.dvar.defined() || var_gradient.defined() ? data(b.x) : nullptr;
    k.statistics = call.device_statistics<A>(b.mean, b.var);
    k.weight = call.factor(b.weight);
    k.frozen = call.frozen;
    k.dx = mutable_data(dx);
    k.dvar = data<A>(b.dvar);
    k.var_gradient = mutable_data<A>(var_gradient);
    k.dtype = dtype_of(b.x);
    k.out_dtype = dtype_of(b.grad);
    at::Tensor partial;
    const int shares = adds ? kernels::positions_shares(k) : 0;
    if (adds) partial = new_sums({shares, call.channels, 2}, b.x);
    k.partial = mutable_data<kernels::Sums<A>>(partial);
    launch("positions_bwd", kernels::positions_bwd<A>, k, call);
    if (!adds) return;
    const kernels::Shape shape{1, k.C, 1, false, false, 1, shares};
    add_channels(b, partial, shape, {}, {});
  });
}

}  // namespace

void positions_forward(const ForwardPass& f, const at::Tensor& y) {
  launch_forward(f, {}, y);
}

void positions_backward(const BackwardPass& b, const at::Tensor& dx) {
  if (b.needs.x || b.needs.weight || b.needs.bias) launch_backward(b, dx, {});
}

at::Tensor positions_second(BackwardPass b, const at::Tensor& dgrad, bool of_var) {
  b.mean = at::empty_like(b.var);
  launch_forward({b.call, b.x, b.weight, {}, b.mean, {}}, b.var, dgrad);
  const auto dvar = of_var ? at::empty_like(b.var) : at::Tensor();
  if (of_var || b.needs.weight) launch_backward(b, {}, dvar);
  return dvar;
}

}  // namespace bcos::norm::glue::cuda
