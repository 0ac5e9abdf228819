// vendor: the products of cuDNN and cuBLAS through torch, and kernels for the norm and the scale beside them.
#include "transform/glue/cuda/vendor.h"

#include <ATen/ops/sum.h>

#include <array>

#include "transform/glue/cuda/patch_norm.h"
#include "transform/glue/cuda/scale.h"

namespace bcos::transform::glue::cuda {
namespace {

void forward(const ForwardCall& c) {
  const auto z = vendor_product(c.call, c.x, c.weights.operand);
  scale_forward(c, z, c.n);
}

Parts backward(const BackwardCall& c) {
  const auto [u, t, db] = scale_backward(c);
  Parts out{{}, {}, {}, db};
  constexpr std::array<int64_t, 2> kImagesAndPixels{0, 2};
  if (c.needs.bias) out.dbias = u.flatten(2).sum(kImagesAndPixels, false, c.call.sums());
  std::tie(out.dx, out.partial) =
      vendor_gradients(c.call, u, c.saved.x, c.weights.operand, c.needs.x, c.needs.weight);
  if (c.needs.x && c.saved.norm_gradient(c.call)) add_norm_gradient(c.call, c.saved.x, t, out.dx);
  return out;
}

SecondParts second(const SecondCall& c) {
  const auto& call = c.call;
  const auto& x = c.saved.x;
  Norms norms{c.saved.n.defined() ? c.saved.n : norm(call, x, {})};
  if (call.norm_gradient()) norms.root = roots(call, x), norms.m = patch_products(call, x, c.v);
  SecondParts out;
  const auto [u, t, unused] = scale_second(c, vendor_product(call, c.v, c.weights.operand), norms, out);
  if (c.needs.x && call.norm_gradient()) out.x = norm_gradient(call, c.v, t);
  out.partial = std::get<1>(vendor_gradients(call, u, c.v, c.weights.operand, false, c.needs.weight));
  return out;
}

const Registered registered({"vendor", true, forward, backward, second, true, true, true, true, true});

}  // namespace
}  // namespace bcos::transform::glue::cuda
