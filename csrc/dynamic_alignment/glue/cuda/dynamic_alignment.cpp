#include "dynamic_alignment/glue/cuda/dynamic_alignment.h"

#include <ATen/ops/col2im.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "common/dtype.h"
#include "common/plain_aten.h"
#include "dynamic_alignment/glue/cuda/call.h"

namespace bcos::dynamic_alignment::glue::cuda {
namespace {

const Takes kCuda{kDevice, {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}};

at::Tensor dense(const at::Tensor& t) {
  return aligned(t.contiguous());
}

Outputs run_forward(const DeviceCall& call, const Inputs& inputs) {
  const OnDeviceOf guard(inputs.x);
  const int64_t pixels = call.pixels();
  Outputs out;
  out.y = at::empty({call.images, call.outputs, call.out[0], call.out[1]},
                    inputs.x.options().memory_format(at::MemoryFormat::Contiguous));
  out.norm = new_sums({call.outputs, pixels}, inputs.x);
  out.l = call.spec.detach ? new_sums({0}, inputs.x) : new_sums({call.outputs, pixels}, inputs.x);
  if (pixels > 0) {
    const auto x = dense(inputs.x);
    const Operands operands(call, inputs, x.scalar_type());
    by_sums(x.scalar_type(), [&](auto sums) {
      using A = typename decltype(sums)::type;
      kernels::Forward<A> k{};
      k.x = data(x);
      k.h = data(operands.h);
      k.weight = data(operands.weight);
      k.y = mutable_data(out.y);
      k.norm = mutable_data<A>(out.norm);
      k.l = call.spec.detach ? nullptr : mutable_data<A>(out.l);
      k.shape = call.shape(operands.depth());
      k.kind = call.spec.norm;
      k.dtype = dtype_of(x);
      k.tf32 = call.tf32;
      launch("dynamic_alignment_forward", kernels::forward<A>, k, call);
    });
  }
  const bool last = inputs.x.is_contiguous(at::MemoryFormat::ChannelsLast) && !inputs.x.is_contiguous();
  out.y = out.y.contiguous(last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  return out;
}

// The gradients at w and at the patches: of_u [O, sites], and of_w [O, pixels] in training.
struct Gradient {
  at::Tensor of_u, of_w;
  int64_t sites;

  Gradient(const DeviceCall& call, const Saved& saved, bool training) {
    const auto grad = dense(saved.grad), norm = dense(saved.norm),
               l = training ? dense(saved.l) : at::Tensor();
    sites = grad.numel() / call.outputs;
    of_u = new_sums({call.outputs, sites}, norm);
    if (training) of_w = new_sums(norm.sizes(), norm);
    by_sums(grad.scalar_type(), [&](auto sums) {
      using A = typename decltype(sums)::type;
      kernels::Upstream<A> k{};
      k.grad = data(grad);
      k.norm = data<A>(norm);
      k.l = data<A>(l);
      k.of_u = mutable_data<A>(of_u);
      k.of_w = mutable_data<A>(of_w);
      k.shape = call.shape(0);
      k.sites = narrow("the number of pixels of all rows", sites);
      k.kind = call.spec.norm;
      k.dtype = dtype_of(grad);
      launch("dynamic_alignment_upstream", kernels::upstream<A>, k, call);
    });
  }
};

at::Tensor input_gradient(const DeviceCall& call, const Inputs& inputs, const Gradient& gradient) {
  const Operands operands(call, inputs, inputs.x.scalar_type());
  const int64_t images = gradient.sites / call.plane();
  const auto du = new_sums({images, call.patch(), call.plane()}, inputs.x);
  by_sums(inputs.x.scalar_type(), [&](auto sums) {
    using A = typename decltype(sums)::type;
    kernels::PatchGradient<A> k{};
    k.of_u = data<A>(gradient.of_u);
    k.h = data(operands.h);
    k.weight = data(operands.weight);
    k.du = mutable_data<A>(du);
    k.shape = call.shape(operands.depth());
    k.sites = int(gradient.sites);
    k.dtype = dtype_of(operands.h);
    k.tf32 = call.tf32;
    launch("dynamic_alignment_patch_gradient", kernels::patch_gradient<A>, k, call);
  });
  const auto& [kernel, stride, padding, norm, detach] = call.spec;
  const auto dx = at::col2im(du, call.in, kernel, {1, 1}, padding, stride);
  return dx.to(inputs.x.scalar_type()).contiguous(inputs.x.suggest_memory_format());
}

// a b, or where `transposed` a^T b; n columns of b.
template <typename A>
at::Tensor product(const DeviceCall& call, const at::Tensor& a, const at::Tensor& b, int64_t m, int64_t k,
                   bool transposed, bool tf32) {
  kernels::Product<A> p{};
  p.a = data<A>(a);
  p.b = data<A>(b);
  p.m = int(m);
  p.n = int(b.size(1));
  p.k = int(k);
  p.a_stride = int(a.size(1));
  p.transposed = transposed;
  p.tf32 = tf32;
  p.splits = kernels::splits_of(p, multiprocessors());
  const auto parts = new_sums({p.splits, m, b.size(1)}, b);
  p.c = mutable_data<A>(parts);
  launch("dynamic_alignment_product", kernels::product<A>, p, call);
  return p.splits == 1 ? parts.squeeze(0) : at::sum(parts, 0);
}

// The gradients of h, the weight and the bias: dw of some pixels at a time, and its products with the weight
// and with h. Half types are products of tf32, which holds them exactly and dw as well as they do.
template <typename A>
void add_training(const DeviceCall& call, const Inputs& inputs, const Gradient& gradient, const Needs& needs,
                  int64_t most, Gradients& found) {
  constexpr int64_t kSide = 64;
  const bool tf32 = call.tf32 || is_half(inputs.x.scalar_type());
  const auto x = dense(inputs.x);
  const Operands operands(call, inputs, accumulate_type(inputs.x.scalar_type()));
  const int64_t pixels = call.pixels(), rows = operands.weight.size(0), stride = (rows + 3) / 4 * 4;
  const int64_t step = std::min(std::max(most / stride / kSide, int64_t(1)) * kSide, pixels);
  const auto dw = new_sums({step, stride}, x);
  const auto by_pixel = operands.h.view({pixels, operands.depth()});
  at::Tensor dh, dweight;
  if (needs.h) dh = new_sums(by_pixel.sizes(), x);
  if (needs.weight || needs.bias) dweight = at::zeros(operands.weight.sizes(), operands.weight.options());
  kernels::WeightGradient<A> k{};
  k.x = data(x);
  k.h = data<A>(operands.h);
  k.weight = data<A>(operands.weight);
  k.of_u = data<A>(gradient.of_u);
  k.of_w = data<A>(gradient.of_w);
  k.dw = mutable_data<A>(dw);
  k.shape = call.shape(operands.depth());
  k.stride = int(stride);
  k.kind = call.spec.norm;
  k.dtype = dtype_of(x);
  k.tf32 = tf32;
  for (int64_t first = 0; first < pixels; first += step) {
    const int64_t count = std::min(step, pixels - first);
    k.first = int(first);
    k.count = int(count);
    launch("dynamic_alignment_weight_gradient", kernels::weight_gradient<A>, k, call);
    if (dh.defined())
      dh.narrow(0, first, count).copy_(product<A>(call, dw, operands.weight, count, rows, false, tf32));
    if (dweight.defined())
      dweight.add_(product<A>(call, dw, by_pixel.narrow(0, first, count), rows, count, true, tf32));
  }
  const auto dtype = inputs.x.scalar_type();
  if (needs.h)
    found.h = dh.narrow(1, 0, call.rank)
                  .view({call.images, call.out[0], call.out[1], call.rank})
                  .permute({0, 3, 1, 2})
                  .to(dtype)
                  .contiguous(inputs.h.suggest_memory_format());
  if (needs.weight) found.weight = dweight.narrow(1, 0, call.rank).to(dtype).contiguous();
  if (needs.bias) found.bias = dweight.select(1, call.rank).to(dtype).contiguous();
}

Gradients run_backward(const DeviceCall& call, const Inputs& inputs, const Saved& saved, const Needs& needs,
                       int64_t most) {
  const OnDeviceOf guard(inputs.x);
  Gradients found;
  if (saved.grad.numel() == 0) {
    auto shape = inputs.x.sizes().vec();
    shape[0] = saved.grad.size(0);
    if (needs.x) found.x = at::zeros(shape, inputs.x.options());
    if (needs.h) found.h = at::zeros_like(inputs.h);
    if (needs.weight) found.weight = at::zeros_like(inputs.weight);
    if (needs.bias) found.bias = at::zeros_like(*inputs.bias);
    return found;
  }
  const Gradient gradient(call, saved, needs.training());
  if (needs.x) found.x = input_gradient(call, inputs, gradient);
  if (needs.training())
    by_sums(inputs.x.scalar_type(), [&](auto sums) {
      add_training<typename decltype(sums)::type>(call, inputs, gradient, needs, most, found);
    });
  return found;
}

}  // namespace

Forward forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                const OptionalTensor& bias, const Spec& spec, bool tf32) {
  const PlainAten guard;
  const Inputs inputs{x, h, weight, bias};
  return pack(run_forward(DeviceCall(make_call(kCuda, spec, inputs), bias.has_value(), tf32), inputs));
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& h, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& norm, const at::Tensor& l, const Spec& spec,
                  const std::vector<bool>& needs, bool tf32, int64_t most) {
  const PlainAten guard;
  const Inputs inputs{x, h, weight, bias};
  const DeviceCall call(make_call(kCuda, spec, inputs), bias.has_value(), tf32);
  const Saved saved{grad, norm, l};
  TORCH_CHECK_VALUE(most > 0, "most is ", most, ", allowed: 1 or more");
  return pack(run_backward(call, inputs, saved, make_needs(call, inputs, saved, needs), most));
}

}  // namespace bcos::dynamic_alignment::glue::cuda
