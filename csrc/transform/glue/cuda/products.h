// The products of our own, with the norm and the scale inside.
#pragma once

#include "transform/glue/cuda/candidate.h"

namespace bcos::transform::glue::cuda {

void implicit_gemm_forward(const ForwardCall& c);

// `fused`: the products form u and t in passing, where they can. Else a kernel before them does.
Parts implicit_gemm_backward(const BackwardCall& c, bool fused);

// For a depthwise call, and a backward without db.
void depthwise_forward(const ForwardCall& c);
Parts depthwise_backward(const BackwardCall& c);

// How many shares of the rows a weight gradient sums on their own, so that its blocks fill the device.
int shares(int64_t rows, int64_t blocks);

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace bcos::transform::glue::cuda
