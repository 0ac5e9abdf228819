#include "host/cuda/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace bcos::host::gpu {
namespace {

// Whether the weight lies in the order of the operand: OIHW beside planes, where nothing is reordered, or
// [F, KH, KW, CG].
bool in_order(const Problem& p, const at::Tensor& weight) {
  return p.planes || p.taps() == 1 || p.group_channels == 1 ||
         weight.is_contiguous(at::MemoryFormat::ChannelsLast);
}

template <typename Params>
void fill_order(Params& k, const Problem& p, const at::Tensor& weight) {
  k.F = int(p.filters());
  k.ohwi = in_order(p, weight);
  k.taps = k.ohwi ? 1 : int(p.taps());
  k.CG = int(p.group_channels * p.taps()) / k.taps;
}

}  // namespace

Weights prepare(const Problem& p, const at::Tensor& weight, at::ScalarType dtype, bool biased) {
  const bool has_gaps = !weight.is_contiguous() && !weight.is_contiguous(at::MemoryFormat::ChannelsLast);
  Weights out;
  out.source = aligned(has_gaps ? weight.contiguous() : weight);
  if (!p.formula.unit) {
    out.operand = p.dense(out.source.to(dtype));
    return out;
  }
  // a fp16 product of weights of any length could overflow; a bias's gradient must not have the factor
  const bool raw = weight.scalar_type() == dtype && dtype != at::kHalf && !biased;
  out.inverse = at::empty({p.filters()}, weight.options().dtype(at::kFloat));
  const bool as_it_is = raw && in_order(p, out.source);
  out.operand = as_it_is ? out.source
                         : at::empty(weight.sizes(), weight.options().dtype(dtype).memory_format(p.format()));
  if (raw) out.alpha = out.inverse;

  cuda::WeightNormFwd k{};
  k.w = data(out.source);
  k.alpha = mutable_data<float>(out.inverse);
  k.operand = as_it_is ? nullptr : mutable_data(out.operand);
  fill_order(k, p, out.source);
  k.raw = raw;
  k.dtype = dtype_of(out.source);
  k.operand_dtype = dtype_of(out.operand);
  BCOS_LAUNCH(weight_norm_fwd, k, p);
  return out;
}

at::Tensor weight_gradient(const Problem& p, const Weights& weights, const at::Tensor& partial) {
  const auto dw = at::empty_like(weights.source);
  cuda::WeightNormBwd k{};
  k.partial = mutable_data(partial);
  k.w = data(weights.source);
  k.alpha = data<float>(weights.inverse);
  k.dw = mutable_data(dw);
  fill_order(k, p, weights.source);
  k.splits = int(partial.numel() / dw.numel());
  k.raw = weights.alpha.defined();
  k.dtype = dtype_of(weights.source);
  k.partial_dtype = dtype_of(partial);
  BCOS_LAUNCH(weight_norm_bwd, k, p);
  return dw;
}

}  // namespace bcos::host::gpu
