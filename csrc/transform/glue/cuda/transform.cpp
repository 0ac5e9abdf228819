#include "transform/glue/cuda/transform.h"

#include "transform/glue/cuda/candidate.h"
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

DeviceCall make_device_call(const Call& call, const Inputs& inputs, const Candidate& candidate, bool large,
                            bool tf32) {
  TORCH_CHECK_VALUE(candidate.takes_axes || (call.window.is_plane() && !call.window.bordered),
                    "candidate is '", candidate.name, "', allowed: 'vendor' for three axes or a border");
  TORCH_CHECK_VALUE(candidate.takes_double || call.dtype != at::kDouble, "candidate is '", candidate.name,
                    "', allowed: 'vendor' for an x of double");
  const bool planes = candidate.takes_planes && !call.spec.linear && lies_in_planes(inputs.x) &&
                      lies_in_planes(inputs.weight);
  return {call, planes, large, tf32};
}

const Candidate& candidate_with_second(const std::string& name) {
  const auto& candidate = candidate_of(name);
  TORCH_CHECK_VALUE(candidate.second != nullptr, "candidate is '", name,
                    "', allowed: one with second derivatives");
  return candidate;
}

at::Tensor device_b(const DeviceCall& call, const OptionalTensor& b) {
  return b ? aligned(b->to(call.sums())) : at::Tensor();
}

Outputs run_forward(const DeviceCall& call, const Inputs& inputs, const Candidate& candidate) {
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

Saved images_of(const DeviceCall& call, const Saved& given) {
  Saved saved = given;
  for (auto* t : {&saved.grad, &saved.x, &saved.y, &saved.n, &saved.l, &saved.winner, &saved.dn, &saved.dl})
    *t = call.dense(image_of(*t));
  saved.weight = image_of(given.weight);
  return saved;
}

Gradients run_backward(const DeviceCall& call, const Saved& given, const Needs& needs,
                       const Candidate& candidate) {
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

Second run_second(const DeviceCall& call, const Saved& given, const at::Tensor& v, const SecondNeeds& needs,
                  const Candidate& candidate) {
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

}  // namespace

Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const Spec& spec, const std::string& candidate, bool large,
                bool tf32) {
  const PlainAten guard;
  const auto& chosen = candidate_of(candidate);
  const Inputs inputs{x, weight, bias, b};
  const auto call = make_device_call(make_call(kCuda, spec, inputs), inputs, chosen, large, tf32);
  return pack(run_forward(call, inputs, chosen), x);
}

Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const OptionalTensor& dn, const OptionalTensor& dl,
                  const OptionalTensor& map, const Spec& spec, bool frozen, const std::vector<bool>& needs,
                  const std::string& candidate, bool large, bool tf32) {
  const PlainAten guard;
  const auto& chosen = (dn || dl) ? candidate_with_second(candidate) : candidate_of(candidate);
  TORCH_CHECK_VALUE(!map || chosen.takes_map, "candidate is '", candidate,
                    "', allowed: one that takes a map");
  const Inputs inputs{x, weight, std::nullopt, b};
  auto sizes = make_call(kCuda, spec, inputs);
  sizes.frozen = frozen;
  const auto wanted = make_needs(needs, b);
  if (chosen.takes_rows) sizes.rows = count_rows(sizes, grad, wanted);
  const auto call = make_device_call(sizes, inputs, chosen, large, tf32);
  auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  set_joined(call, dn, dl, saved);
  set_map(call, map, saved);
  return pack(run_backward(call, saved, wanted, chosen));
}

SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                   const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                   const at::Tensor& winner, const Spec& spec, bool frozen, bool detached,
                   const std::vector<bool>& needs, const std::string& candidate, bool tf32) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(spec.b, "spec has b=None, allowed: a number");
  TORCH_CHECK_VALUE(needs.size() == 2, "needs has ", needs.size(), " values, allowed: 2");
  const auto& chosen = candidate_with_second(candidate);
  const Inputs inputs{x, weight, std::nullopt, std::nullopt};
  auto call = make_device_call(make_call(kCuda, spec, inputs), inputs, chosen, false, tf32);
  call.frozen = frozen || detached;
  check_exactly(x, "v", v, x.sizes(), x.scalar_type());
  const auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  return pack(run_second(call, saved, v, {needs[0], needs[1], detached}, chosen));
}

}  // namespace bcos::transform::glue::cuda
