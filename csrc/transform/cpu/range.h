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

// Whether a call may have lost l. Then l, from a product of the filters as the formula has them, stands in
// `saved` in place of y, and the call goes on by with_l(call).
bool replaces_y(const Call& call, Saved& saved);

}  // namespace bcos::transform::cpu
