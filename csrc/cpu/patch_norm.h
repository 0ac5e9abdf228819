// The norm of every input patch, and its transpose that spreads per-patch values back over the patch's
// pixels.
#pragma once

#include "cpu/tiling.h"
#include "host/params.h"

namespace bcos::cpu {

// x [N, C, H, W] contiguous or channels_last -> n [N, G, OH, OW] of the same memory format, fp32 (fp64 for
// double)
at::Tensor patch_norm(const at::Tensor& x, bool channels_last, const Window& window, const Formula& formula);

// t [N, G, OH, OW] -> r [N, G, H, W]: the sum of t over the patches that hold each pixel
at::Tensor spread(const at::Tensor& t, bool channels_last, const Window& window);

// Sum of squares of each group of each pixel, into q; Tiling of x.
void square_sums(const at::Tensor& x, const Tiling& tiling, at::Tensor& q);

// The same and the root after it for rows [begin, end) of x [rows, size], on the calling thread.
void row_norms(const float* x, float* n, int64_t size, const Constants<float>& k, int64_t begin, int64_t end);

// n in place of the sums of squares q
void finish_norm(at::Tensor& q, const Formula& formula);

}  // namespace bcos::cpu
