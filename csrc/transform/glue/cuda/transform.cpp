#include "transform/glue/cuda/transform.h"

#include "transform/glue/arguments.h"
#include "transform/glue/cuda/patch_norm.h"

namespace bcos::transform::glue::cuda {
namespace {

const Takes kCuda{kDevice, {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}};

// The rows of a linear layer as images of one pixel.
at::Tensor image_of(const at::Tensor& t) {
  return t.defined() && t.dim() == 2 ? t.contiguous().view({t.size(0), t.size(1), 1, 1}) : t;
}

at::Tensor rows_of(const at::Tensor& t) {
  return t.defined() ? t.flatten(1) : t;
}

OptionalTensor rows_of(const OptionalTensor& t) {
  return t ? OptionalTensor(t->flatten(1)) : t;
}

// Not channels last, for which torch takes a filter of one tap, too, that was made in this order.
bool lies_in_planes(const at::Tensor& t) {
  return t.is_contiguous() && !is_channels_last(t.suggest_memory_format());
}

at::Tensor device_b(const DeviceCall& call, const OptionalTensor& b) {
  return b ? aligned(b->to(call.sums())) : at::Tensor();
}

Saved images_of(const DeviceCall& call, const Saved& given) {
  Saved saved = given;
  for (auto* t : {&saved.grad, &saved.x, &saved.y, &saved.n, &saved.l, &saved.winner, &saved.dn, &saved.dl})
    *t = call.dense(image_of(*t));
  saved.weight = image_of(given.weight);
  return saved;
}

}  // namespace

Cuda::Cuda(const std::string& name, bool large, bool tf32, bool divides_x)
    : candidate(candidate_of(name)),
      large(large),
      tf32(tf32),
      divides_x(divides_x),
      takes_rows(candidate.takes_rows) {}

DeviceCall Cuda::on_device(const Call& call, const at::Tensor& x, const at::Tensor& weight) const {
  TORCH_CHECK_VALUE(candidate.takes_axes || (call.window.is_plane() && !call.window.bordered),
                    "candidate is '", candidate.name, "', allowed: 'vendor' for three axes or a border");
  TORCH_CHECK_VALUE(candidate.takes_double || call.dtype != at::kDouble, "candidate is '", candidate.name,
                    "', allowed: 'vendor' for an x of double");
  TORCH_CHECK_VALUE(
      !divides_x || (call.spec.linear && call.spec.eps_inside == 0),
      "divides_x is True, allowed: False for a convolution, and for a norm_eps[0] other than 0");
  TORCH_CHECK_VALUE(!divides_x || call.frozen || candidate.second != nullptr, "candidate is '",
                    candidate.name, "', allowed: 'vendor' to divide x");
  const bool planes =
      candidate.takes_planes && !call.spec.linear && lies_in_planes(x) && lies_in_planes(weight);
  return {call, planes, large, tf32, divides_x};
}

void Cuda::check_second() const {
  TORCH_CHECK_VALUE(candidate.second != nullptr, "candidate is '", candidate.name,
                    "', allowed: one with second derivatives");
}

Call Cuda::make_call(const Spec& spec, const Inputs& inputs) const {
  return glue::make_call(kCuda, spec, inputs);
}

Outputs Cuda::forward(const Call& sizes, const Inputs& inputs) const {
  const auto call = on_device(sizes, inputs.x, inputs.weight);
  const auto x = image_of(inputs.x), weight = image_of(inputs.weight);
  const OnDeviceOf guard(x);
  Outputs out;
  out.y = call.image(call.outputs(), call.spec.out_dtype, x);
  if (call.saves_n()) out.n = call.image(call.spec.groups, call.sums(), x);
  if (call.saves_l()) out.l = call.image(call.outputs(), call.spec.out_dtype, x);
  if (call.saves_winner()) out.winner = call.image(call.outputs(), at::kByte, x);
  if (out.y.numel() > 0) {
    const auto bias = inputs.bias ? aligned(inputs.bias->contiguous()) : at::Tensor();
    ForwardCall c{
        call, call.dense(x), bias, device_b(call, inputs.b), new_weights(call, weight, bias.defined()), out,
        {}};
    if (candidate.takes_norm)
      c.n = form_with_norm(call, c.weights, c.x, out.n);
    else
      form(call, c.weights);
    candidate.forward(c);
  }
  if (call.spec.linear) out = {rows_of(out.y), rows_of(out.n), rows_of(out.l), rows_of(out.winner)};
  return out;
}

Gradients Cuda::backward(const Call& sizes, const Saved& given, const Needs& needs) const {
  if (given.dl.defined()) check_second();
  TORCH_CHECK_VALUE(!given.map.defined() || candidate.takes_map, "candidate is '", candidate.name,
                    "', allowed: one that takes a map");
  const auto call = on_device(sizes, given.x, given.weight);
  const OnDeviceOf guard(given.x);
  if (given.x.numel() == 0 || given.grad.numel() == 0) return Gradients::zeros(given, needs);
  const Saved saved = images_of(call, given);
  const auto weights = prepare(call, saved.weight, needs.bias);
  const auto parts = candidate.backward({call, saved, weights, device_b(call, given.b), needs});
  Gradients out;
  if (needs.x) out.x = parts.dx;
  if (needs.weight) out.weight = weight_gradient(call, weights, parts.partial);
  if (needs.bias) out.bias = parts.dbias.to(given.weight.scalar_type());
  if (needs.b) out.b = parts.db.to(given.b->scalar_type()).view(given.b->sizes());
  if (call.spec.linear) {
    out.x = rows_of(out.x);
    out.weight = rows_of(out.weight);
  }
  return out;
}

Second Cuda::second(const Call& sizes, const Saved& given, const at::Tensor& v,
                    const SecondNeeds& needs) const {
  check_second();
  const auto call = on_device(sizes, given.x, given.weight);
  const OnDeviceOf guard(given.x);
  if (given.x.numel() == 0 || given.grad.numel() == 0) return Second::zeros(given, needs);
  const Saved saved = images_of(call, given);
  const auto weights = prepare(call, saved.weight, false);
  const auto parts = candidate.second({call, saved, weights, call.dense(image_of(v)), needs});
  Second out{parts.grad, parts.n, parts.l, std::nullopt, std::nullopt};
  if (parts.x.defined()) out.x = parts.x;
  if (needs.weight) out.weight = weight_gradient(call, weights, parts.partial);
  if (call.spec.linear)
    out = {rows_of(out.grad), rows_of(out.n), rows_of(out.l), rows_of(out.x), rows_of(out.weight)};
  return out;
}

}  // namespace bcos::transform::glue::cuda
