#include "transform/glue/transform.h"

#include "common/layout.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/range.h"
#include "transform/cpu/transform.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::glue {
namespace {

const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

// The call as the kernels serve it. One of fp16 comes with an x of float and gets outputs in float, which
// core/half.py rounds; l stands there in place of y, as in every call of fp16.
Call make_cpu_call(const Spec& spec, const Inputs& inputs) {
  if (spec.out_dtype != at::kHalf || inputs.x.scalar_type() != at::kFloat)
    return make_call(kCpu, spec, inputs);
  Spec wide = spec;
  wide.out_dtype = at::kFloat;
  auto call = make_call(kCpu, wide, inputs);
  return call.saves_y() ? cpu::with_l(std::move(call)) : call;
}

Outputs outputs_of(const Inputs& inputs, const Spec& spec) {
  const PlainAten guard;
  const auto call = make_cpu_call(spec, inputs);
  return cpu::forward(call, inputs);
}

}  // namespace

Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const Spec& spec) {
  return pack(outputs_of({x, weight, bias, b}, spec), x);
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const OptionalTensor& dn, const OptionalTensor& dl,
                  const OptionalTensor& map, const Spec& spec, bool frozen, const std::vector<bool>& needs) {
  const PlainAten guard;
  const Inputs inputs{x, weight, std::nullopt, b};
  auto call = make_cpu_call(spec, inputs);
  call.frozen = frozen;
  const auto wanted = make_needs(needs, b);
  call.rows = count_rows(call, grad, wanted);
  auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  set_joined(call, dn, dl, saved);
  set_map(call, map, saved);
  return pack(cpu::backward(call, saved, wanted));
}

SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                   const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                   const at::Tensor& winner, const Spec& spec, bool frozen, bool detached,
                   const std::vector<bool>& needs) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(spec.b, "spec has b=None, allowed: a number");
  TORCH_CHECK_VALUE(needs.size() == 2, "needs has ", needs.size(), " values, allowed: 2");
  const Inputs inputs{x, weight, std::nullopt, std::nullopt};
  auto call = make_cpu_call(spec, inputs);
  call.frozen = frozen || detached;
  check_exactly(x, "v", v, x.sizes(), x.scalar_type());
  const auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  return pack(cpu::second(call, saved, v, {needs[0], needs[1], detached}));
}

Kernels kernels(const Spec& spec, bool saves_output, bool detached) {
  const auto forwards = [spec](const Tensors& in) {
    const auto out = outputs_of({in[0], in[1], given(in[2]), given(in[3])}, spec);
    return Tensors{out.y, out.n, out.l, out.winner};
  };
  const auto backwards = [spec, detached](const at::Tensor& grad, const Tensors& in, const Tensors& saved,
                                          const std::vector<bool>& needs, const at::Tensor& map) {
    const auto [dx, dweight, dbias, db] =
        backward(grad, in[0], in[1], given(in[3]), given(saved[0]), saved[1], saved[2], saved[3],
                 std::nullopt, std::nullopt, given(map), spec, detached, needs);
    return or_undefined(dx, dweight, dbias, db);
  };
  return {forwards, backwards, {}, 4, 4, 1, saves_output};
}

at::Tensor patch_norm(const at::Tensor& x, const Ints& kernel, const Spec& spec) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(!spec.linear, "spec is that of a linear layer, allowed: that of a convolution");
  const auto axes = int64_t(spec.stride.size());
  check_input(kCpu, "x", x, 2 + axes);
  check_sizes("kernel", kernel, axes, 1);
  Ints weight_sizes{spec.max_out * spec.groups, x.size(1) / spec.groups};
  weight_sizes.insert(weight_sizes.end(), kernel.begin(), kernel.end());
  const auto format = x.suggest_memory_format();
  return cpu::patch_norm(Call(spec, x, weight_sizes), x.contiguous(format), is_channels_last(format));
}

at::Tensor weight_norm(const at::Tensor& weight) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(weight.dim() >= 1, "weight has 0 dimensions, allowed: 1 or more");
  check_input(kCpu, "weight", weight, weight.dim());
  check_not_empty("weight", weight);
  return cpu::weight_norm(weight.contiguous(weight.suggest_memory_format()));
}

}  // namespace bcos::transform::glue
