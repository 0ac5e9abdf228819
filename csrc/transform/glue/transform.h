// The transform as Python calls it: arguments are checked, and the kernels of a backend are started.
#pragma once

#include "common/autograd/recorded.h"
#include "common/plain_aten.h"
#include "transform/glue/arguments.h"

namespace bcos::transform::glue {

// The kernels for CPU tensors. A backend is made of the options that Python gives beside the arguments of the
// transform, of which this one has none.
struct Cpu {
  static constexpr bool takes_rows = true;  // its backward serves calls of several rows

  Call make_call(const Spec& spec, const Inputs& inputs) const;
  Outputs forward(const Call& call, const Inputs& inputs) const;
  Gradients backward(const Call& call, const Saved& saved, const Needs& needs) const;
  Second second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs) const;
};

// x [M, K] or [N, C, H, W] -> y, n, l, winner; those that a backward does not need are empty. y, l and winner
// are [M, O] or [N, O, OH, OW], n is [M, 1] or [N, G, OH, OW]. l is there for b other than 1 and 2 and for b
// as a tensor, and winner (uint8) for max_out > 1.
template <typename Backend, typename... Options>
Forward forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& b, const Spec& spec, Options... options) {
  const PlainAten guard;
  const Backend backend{options...};
  const Inputs inputs{x, weight, bias, b};
  return pack(backend.forward(backend.make_call(spec, inputs), inputs), x);
}

// -> dx, dweight, dbias, db, none where not needed. `frozen`: the scale is a constant of this derivative.
// `map`: that of Saved, where grad is not yet the gradient of y.
template <typename Backend, typename... Options>
Backward backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                  const at::Tensor& winner, const OptionalTensor& dn, const OptionalTensor& dl,
                  const OptionalTensor& map, const Spec& spec, bool frozen, const std::vector<bool>& needs,
                  Options... options) {
  const PlainAten guard;
  const Backend backend{options...};
  const Inputs inputs{x, weight, std::nullopt, b};
  auto call = backend.make_call(spec, inputs);
  call.frozen = frozen;
  const auto wanted = make_needs(needs, b);
  if (backend.takes_rows) call.rows = count_rows(call, grad, wanted);
  auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  set_joined(call, dn, dl, saved);
  set_map(call, map, saved);
  return pack(backend.backward(call, saved, wanted));
}

// The gradients of <v, dx>, where dx is what the backward returns for x -> those of grad, x, weight, n and l.
// A backward takes the last two as dn and dl; they are none where the scale is `detached`, which means a
// constant of every derivative. `needs` is for x and weight.
template <typename Backend, typename... Options>
SecondOrder second(const at::Tensor& v, const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                   const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                   const at::Tensor& winner, const Spec& spec, bool frozen, bool detached,
                   const std::vector<bool>& needs, Options... options) {
  const PlainAten guard;
  TORCH_CHECK_VALUE(spec.b, "spec has b=None, allowed: a number");
  TORCH_CHECK_VALUE(needs.size() == 2, "needs has ", needs.size(), " values, allowed: 2");
  const Backend backend{options...};
  const Inputs inputs{x, weight, std::nullopt, std::nullopt};
  auto call = backend.make_call(spec, inputs);
  call.frozen = frozen || detached;
  check_exactly(x, "v", v, x.sizes(), x.scalar_type());
  const auto saved = make_saved(call, inputs, grad, y, n, l, winner);
  return pack(backend.second(call, saved, v, {needs[0], needs[1], detached}));
}

// Both directions on the CPU as autograd's graph uses them; `detached` as above.
Kernels kernels(const Spec& spec, bool saves_output, bool detached);

}  // namespace bcos::transform::glue
