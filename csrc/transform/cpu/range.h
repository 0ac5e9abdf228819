// Calls whose numbers leave the range of their type on the way, although inputs and gradients stay within it.
#pragma once

#include "transform/tensors.h"

namespace bcos::transform::cpu {

// At b = 2, y = l |l| / n stands for l in the backward. Where y underflows while the slope |l| / n does not,
// l is lost. Unless its cosine is below 1e-6, such a patch is too small to be seen beside the epsilon of its
// norm: n is that of a zero patch, and x holds small values. This is whether it does.
bool loses_l(const Call& call, const at::Tensor& x);

// The same call of b = 2 by the general formula, which takes l and ignores y.
Call with_l(Call call);

// The gradient that reaches x through n is formed as x times dL/dn / r, where r = n - eps_outside is the norm
// without that epsilon. Both may fail beside a bias, which keeps l from being as small as x: an n that is
// hardly above eps_outside has lost digits of r, and the factor may exceed float although the gradient does
// not. Such a derivative is formed in double, with n formed again.
bool needs_double(const Call& call, const Saved& saved);
Call in_double(Call call);
Saved in_double(Saved saved);

// What a derivative in double has found, in the dtypes that one of `given` has.
Gradients in_types_of(const Saved& given, Gradients found);
Second in_types_of(const Saved& given, Second found);

// derivative(call, saved), in double where that is needed
template <typename F>
auto within_double(const Call& call, const Saved& saved, F&& derivative) {
  if (!needs_double(call, saved)) return derivative(call, saved);
  return in_types_of(saved, derivative(in_double(call), in_double(saved)));
}

// Whether a call may have lost l. Then l, from a product of the filters as the formula has them, stands in
// `saved` in place of y, and the call goes on by with_l(call).
bool replaces_y(const Call& call, Saved& saved);

}  // namespace bcos::transform::cpu
