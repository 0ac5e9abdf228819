#include "host/cuda/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

namespace bcos::host::gpu {
namespace {

// Whether the weight's memory order is [F, KH, KW, CG].
bool is_ohwi(const Problem& p, const at::Tensor& weight) {
  return p.taps() == 1 || p.group_channels == 1 || weight.is_contiguous(at::MemoryFormat::ChannelsLast);
}

}  // namespace

Weights prepare(const Problem& p, const at::Tensor& weight, at::ScalarType dtype, bool biased) {
  const bool has_gaps = !weight.is_contiguous() && !weight.is_contiguous(at::MemoryFormat::ChannelsLast);
  Weights out;
  out.source = aligned(has_gaps ? weight.contiguous() : weight);
  const bool ohwi = is_ohwi(p, out.source);
  if (!p.formula.unit) {
    out.operand = dense(out.source.to(dtype));
    return out;
  }
  // a fp16 product of weights of any length could overflow; a bias's gradient must not have the factor
  const bool raw = weight.scalar_type() == dtype && dtype != at::kHalf && !biased;
  out.inverse = at::empty({p.filters()}, weight.options().dtype(at::kFloat));
  const bool as_it_is = raw && ohwi;
  out.operand = as_it_is
                    ? out.source
                    : at::empty(weight.sizes(),
                                weight.options().dtype(dtype).memory_format(at::MemoryFormat::ChannelsLast));
  if (raw) out.alpha = out.inverse;

  cuda::WeightNormFwd k{};
  k.w = data(out.source);
  k.alpha = mutable_data<float>(out.inverse);
  k.operand = as_it_is ? nullptr : mutable_data(out.operand);
  k.F = int(p.filters());
  k.CG = int(p.group_channels);
  k.taps = int(p.taps());
  k.ohwi = ohwi;
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
  k.F = int(p.filters());
  k.CG = int(p.group_channels);
  k.taps = int(p.taps());
  k.splits = int(partial.numel() / dw.numel());
  k.ohwi = is_ohwi(p, weights.source);
  k.raw = weights.alpha.defined();
  k.dtype = dtype_of(weights.source);
  k.partial_dtype = dtype_of(partial);
  BCOS_LAUNCH(weight_norm_bwd, k, p);
  return dw;
}

}  // namespace bcos::host::gpu
