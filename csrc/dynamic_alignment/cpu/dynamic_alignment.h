// Dynamic alignment units on the CPU.
//
// The dynamic weights of all pixels, [N, P, O, OH, OW], never exist. They are formed in blocks: those of a
// few values of the patch, of all outputs and of a tile of pixels. A block stays in the cache between the
// product that makes it and the passes that use it. Per pixel, output and value of the patch the two ways
// cost, in multiplications of products and in bytes of the cache that the passes between them move:
//
//                  w is formed, as here             factored: (h^T A) u and |w|^2 = h^T (A^T A) h
//     forward      R                     8          R (1 + R/P)               8 R/P
//     explanation  R, for all rows       8          R for each row            8 R/P
//     training     3 R (w, dh, dweight)  24         3 R (1 + R/(2P))          24 R/P
//
// R = 32 to 256 multiplications take longer than moving 8 bytes within the cache, so the
// products decide. R/P is 0.11 to 1 in published networks: the factored form needs 1.06 to 2 times as many.
// Neither way needs memory beyond a block, and |w|^2 from A^T A loses digits to cancellation where w is small
// beside the terms that it is the sum of. So w is formed, which also serves the 1-norm.
#pragma once

#include "dynamic_alignment/tensors.h"

namespace bcos::dynamic_alignment::cpu {

Outputs forward(const Call& call, const Inputs& inputs);

// With several rows of the dynamic linear map, only the gradient of x can be asked for.
Gradients backward(const Call& call, const Inputs& inputs, const Saved& saved, const Needs& needs);

}  // namespace bcos::dynamic_alignment::cpu
