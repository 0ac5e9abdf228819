// semi: one kernel forms u and t, and products of our own take them. It is a candidate of the backward; its
// forward, and all of a depthwise call, are those of one-pass, or of vendor where a map is given.
#include "transform/glue/cuda/products.h"

namespace bcos::transform::glue::cuda {
namespace {

void forward(const ForwardCall& c) {
  candidate_of("one-pass").forward(c);
}

Parts backward(const BackwardCall& c) {
  if (!c.call.depthwise()) return implicit_gemm_backward(c, false);
  return candidate_of(c.saved.map.defined() ? "vendor" : "one-pass").backward(c);
}

const Registered registered({"semi", false, forward, backward, nullptr, false, true});

}  // namespace
}  // namespace bcos::transform::glue::cuda
