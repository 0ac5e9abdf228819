#include "transform/glue/cuda/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace bcos::transform::glue::cuda {
namespace {

// Whether the weight lies in the order of the operand: OIHW beside planes, where nothing is reordered, or
// [F, KH, KW, CG].
bool in_order(const DeviceCall& call, const at::Tensor& weight) {
  return call.planes || call.window.taps() == 1 || call.group_channels() == 1 ||
         weight.is_contiguous(image_format(true, weight.dim()));
}

template <typename Params>
void fill_order(Params& k, const DeviceCall& call, const at::Tensor& weight) {
  k.F = int(call.filters);
  k.ohwi = in_order(call, weight);
  k.taps = k.ohwi ? 1 : int(call.window.taps());
  k.CG = int(call.group_channels() * call.window.taps()) / k.taps;
}

}  // namespace

bool takes_raw(const DeviceCall& call, at::ScalarType weight, bool biased) {
  // A product of fp16 weights of any length could overflow, and the gradient of a bias must not have the
  // factor alpha.
  return call.spec.unit && weight == call.dtype && call.dtype != at::kHalf && !biased;
}

Weights new_weights(const DeviceCall& call, const at::Tensor& weight, bool biased) {
  const bool has_gaps = !weight.is_contiguous() && !weight.is_contiguous(image_format(true, weight.dim()));
  Weights out;
  out.source = aligned(has_gaps ? weight.contiguous() : weight);
  if (!call.spec.unit) {
    out.operand = call.dense(out.source.to(call.dtype));
    return out;
  }
  const bool raw = takes_raw(call, weight.scalar_type(), biased);
  out.inverse = new_sums({call.filters}, weight);
  const bool as_it_is = raw && in_order(call, out.source);
  out.operand =
      as_it_is ? out.source
               : at::empty(weight.sizes(), weight.options().dtype(call.dtype).memory_format(call.format()));
  if (raw) out.alpha = out.inverse;
  return out;
}

template <typename A>
kernels::WeightNormFwd<A> weight_norm(const DeviceCall& call, const Weights& weights) {
  kernels::WeightNormFwd<A> k{};
  k.dtype = dtype_of(weights.source);
  k.operand_dtype = dtype_of(weights.operand);
  if (!weights.inverse.defined()) return k;
  k.w = data(weights.source);
  k.alpha = mutable_data<A>(weights.inverse);
  k.operand = weights.operand.is_same(weights.source) ? nullptr : mutable_data(weights.operand);
  fill_order(k, call, weights.source);
  k.raw = weights.alpha.defined();
  return k;
}

template kernels::WeightNormFwd<float> weight_norm(const DeviceCall&, const Weights&);
template kernels::WeightNormFwd<double> weight_norm(const DeviceCall&, const Weights&);

void form(const DeviceCall& call, const Weights& weights) {
  if (!weights.inverse.defined()) return;
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    launch("weight_norm_fwd", kernels::weight_norm_fwd<A>, weight_norm<A>(call, weights), call);
  });
}

Weights prepare(const DeviceCall& call, const at::Tensor& weight, bool biased) {
  const auto out = new_weights(call, weight, biased);
  form(call, out);
  return out;
}

at::Tensor weight_gradient(const DeviceCall& call, const Weights& weights, const at::Tensor& partial) {
  const auto dw = at::empty_like(weights.source);
  by_sums(call.dtype, [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::WeightNormBwd<A> k{};
    k.partial = mutable_data(partial);
    k.w = data(weights.source);
    k.alpha = data<A>(weights.inverse);
    k.dw = mutable_data(dw);
    fill_order(k, call, weights.source);
    k.splits = int(partial.numel() / dw.numel());
    k.raw = weights.alpha.defined();
    k.dtype = dtype_of(weights.source);
    k.partial_dtype = dtype_of(partial);
    launch("weight_norm_bwd", kernels::weight_norm_bwd<A>, k, call);
  });
  return dw;
}

}  // namespace bcos::transform::glue::cuda
