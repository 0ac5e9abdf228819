// Calls whose numbers leave the range of their type on the way, although inputs and gradients stay within it.
#pragma once

#include "host/params.h"

namespace bcos::cpu {

// At b = 2, y = l |l| / n stands for l in the backward. Where y underflows while the slope |l| / n does not,
// l is lost. Unless its cosine is below 1e-6, such a patch is too small to be seen beside the epsilon of its
// norm: n is that of a zero patch, and x holds small values. A backward asks for both, in this order.
bool holds_small_norm(const at::Tensor& n, const Formula& formula);
bool loses_linear(const at::Tensor& x, const Formula& formula);

// l of a layer of b = 2: recovered from y, or the winner of z = x * w/|w| where y has underflowed.
at::Tensor recover_linear(const Saved& saved, const at::Tensor& z, const Formula& formula);

// The formula of b = 2 that takes l and ignores y.
Formula with_linear(const Formula& formula);

// The formula for filters that are normalised already.
Formula without_unit(const Formula& formula);

}  // namespace bcos::cpu
