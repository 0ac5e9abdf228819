// one-pass: norm, scale and their derivatives inside the products.
#include "transform/glue/cuda/products.h"

namespace bcos::transform::glue::cuda {
namespace {

void forward(const ForwardCall& c) {
  c.call.depthwise() ? depthwise_forward(c) : implicit_gemm_forward(c);
}

Parts backward(const BackwardCall& c) {
  if (!c.call.depthwise()) return implicit_gemm_backward(c, true);
  // A depthwise call's own kernels form no db, and a product of one channel would waste its tile.
  return c.needs.b ? candidate_of("vendor").backward(c) : depthwise_backward(c);
}

const Registered registered({"one-pass", false, forward, backward});

}  // namespace
}  // namespace bcos::transform::glue::cuda
