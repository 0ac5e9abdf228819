// Calls whose filters are divided by their norms before the product, and not the product after it.
#pragma once

#include "transform/cpu/weight_norm.h"
#include "transform/tensors.h"

namespace bcos::transform::cpu {

// The same call for filters that are divided by their norms already.
Call without_unit(Call call);

// Whether the filters of a call are: at b = 1 a gradient in half precision is not rounded before its product,
// and alpha would round it. Filters of half precision would be rounded in its place.
bool divides_filters(const Call& call, const at::Tensor& weight);

// Puts those values of `again` into `out` that are not finite there.
void replace_lost(Outputs& out, const Outputs& again);

// What products(call, inputs) gives. The products of long filters may overflow before they are divided by the
// norms: what they lose comes from filters that are divided, and rounded once more. Every other value stays.
template <typename F>
Outputs within_range(const Call& call, const Inputs& inputs, F&& products) {
  const auto of_unit = [&] {
    return products(without_unit(call), {inputs.x, unit_weight(inputs.weight), inputs.bias, inputs.b});
  };
  if (divides_filters(call, inputs.weight)) return of_unit();
  auto out = products(call, inputs);
  if (!out.finite && call.spec.unit) replace_lost(out, of_unit());
  return out;
}

// d at w/|w| as a gradient at w
at::Tensor through_norm(const Call& call, const at::Tensor& weight, const at::Tensor& d);

// The derivative of a call that divides_filters: derivative(call, saved) for the divided ones.
template <typename F>
auto by_unit_filters(const Call& call, const Saved& given, F&& derivative) {
  Saved saved = given;
  saved.weight = unit_weight(given.weight);
  auto out = derivative(without_unit(call), saved);
  if (out.weight) out.weight = through_norm(call, given.weight, *out.weight);
  return out;
}

}  // namespace bcos::transform::cpu
