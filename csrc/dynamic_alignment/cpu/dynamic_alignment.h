// Dynamic alignment units on the CPU.
//
// The dynamic weights of all pixels, [N, P, O, OH, OW], never exist. They are formed in blocks: those of a
// few values of the patch, of all outputs and of a tile of pixels, which stay in the cache between the
// product that makes them and the passes that use them. Per pixel, output and value of the patch that takes
//
//     forward       R products     w
//     explanation   R products     w, of which all rows of the dynamic linear map share the block
//     training      3 R products   w, dh, dweight; dx takes two more
//
// The factored form, (h^T A) u with A = weight and |w|^2 = h^T (A^T A) h, has a smaller matrix between its
// products, [O, R + 1] a pixel in place of [P, O], but no fewer products: R (1 + R/P) and R (3 + 1.5 R/P),
// which is 1.04 to 2 times as many in published networks. It does not save memory either, because a block has
// the size of a cache in both, and |w|^2 loses digits to cancellation where w is small. So w is formed.
#pragma once

#include "dynamic_alignment/tensors.h"

namespace bcos::dynamic_alignment::cpu {

Outputs forward(const Call& call, const Inputs& inputs);

// With several rows of the dynamic linear map, only the gradient of x can be asked for.
Gradients backward(const Call& call, const Inputs& inputs, const Saved& saved, const Needs& needs);

}  // namespace bcos::dynamic_alignment::cpu
