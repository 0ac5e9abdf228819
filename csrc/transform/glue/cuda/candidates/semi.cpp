// semi: one kernel forms u and t, and products of our own take them. It is a candidate of the backward; its
// forward, and all of a depthwise call, are those of one-pass.
#include "transform/glue/cuda/products.h"

namespace bcos::transform::glue::cuda {
namespace {

void forward(const ForwardCall& c) {
  candidate_of("one-pass").forward(c);
}

Parts backward(const BackwardCall& c) {
  return c.call.depthwise() ? candidate_of("one-pass").backward(c) : implicit_gemm_backward(c, false);
}

const Registered registered({"semi", false, forward, backward});

}  // namespace
}  // namespace bcos::transform::glue::cuda
