// The norm on a GPU.
#include "norm/glue/norm.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "norm/glue/cuda/passes.h"

namespace bcos::norm::glue::cuda {

extern const Backend kCuda;

namespace {

at::Tensor dense_sums(const DeviceCall& call, const OptionalTensor& t) {
  return t ? t->to(call.sums()).contiguous() : at::Tensor();
}

Outputs forward(const Call& sizes, const Inputs& inputs) {
  const auto& x = inputs.x;
  const DeviceCall call(sizes, x);
  const OnDeviceOf guard(x);
  Outputs out;
  if (!call.given) {
    out.mean = new_sums(call.statistics_shape, x);
    out.var = new_sums(call.statistics_shape, x);
  }
  out.y = call.result_of(x, call.spec.out_dtype, [&](const at::Tensor& y) {
    if (x.numel() == 0) return;
    const ForwardPass pass{call,
                           call.dense(x),
                           dense_factor(inputs.weight),
                           dense_factor(inputs.bias),
                           call.given ? dense_sums(call, inputs.mean) : out.mean,
                           call.given ? dense_sums(call, inputs.var) : out.var};
    (call.at_positions() ? positions_forward : shared_forward)(pass, y);
  });
  if (x.numel() == 0 && !call.given)  // what statistics of no values are
    for (auto* t : {&out.mean, &out.var}) t->fill_(std::numeric_limits<double>::quiet_NaN());
  return out;
}

// To be written; zeros where there is nothing to add up, undefined where not needed.
at::Tensor channel_sums(const DeviceCall& call, const at::Tensor& x, bool needed) {
  const at::IntArrayRef shape = call.channels;
  if (!needed) return {};
  return x.numel() == 0 ? at::zeros(shape, x.options().dtype(call.sums())) : new_sums(shape, x);
}

Gradients backward(const Call& sizes, const Saved& saved, const Needs& needs) {
  const auto& x = saved.x;
  const DeviceCall call(sizes, x);
  const OnDeviceOf guard(x);
  const bool empty = x.numel() == 0;
  const at::Tensor dweight = channel_sums(call, x, needs.weight), dbias = channel_sums(call, x, needs.bias);
  Gradients out;
  if (needs.weight) out.weight = dweight;
  if (needs.bias) out.bias = dbias;
  if (empty) {
    if (needs.x) out.x = at::zeros_like(x);
    if (needs.map) out.map = at::zeros({4, call.channels}, x.options().dtype(call.sums()));
    return out;
  }
  if (needs.map) out.map = new_sums({4, call.channels}, x);
  const BackwardPass pass{call,
                          call.dense(saved.grad),
                          call.dense(x),
                          dense_factor(saved.weight),
                          aligned(saved.mean),
                          aligned(saved.var),
                          needs,
                          dweight,
                          dbias,
                          aligned(saved.dvar),
                          out.map.value_or(at::Tensor())};
  const auto run = call.at_positions() ? positions_backward : shared_backward;
  if (needs.x)
    out.x = call.result_of(x, call.dtype, [&](const at::Tensor& dx) { run(pass, dx); });
  else
    run(pass, {});
  return out;
}

Second second(const Call& sizes, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs) {
  const DeviceCall call(sizes, saved.x);
  const OnDeviceOf guard(v);
  const Needs sums{false, needs.weight, false};
  const at::Tensor dweight = channel_sums(call, v, needs.weight);
  Second out;
  if (needs.weight) out.weight = dweight;
  if (v.numel() == 0) {
    out.grad = at::zeros_like(saved.grad);
    if (needs.var) out.var = at::zeros_like(saved.var);
    return out;
  }
  const BackwardPass pass{call, call.dense(saved.grad), call.dense(v), dense_factor(saved.weight),
                          {},   aligned(saved.var),     sums,          dweight,
                          {}};
  const auto run = call.at_positions() ? positions_second : shared_second;
  out.grad = call.result_of(v, call.spec.out_dtype,
                            [&](const at::Tensor& dgrad) { out.var = run(pass, dgrad, needs.var); });
  return out;
}

}  // namespace

const Backend kCuda{
    {kDevice, {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}}, forward, backward, second};

}  // namespace bcos::norm::glue::cuda
