#include "transform/tensors.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace bcos::transform {

Gradients Gradients::zeros(const Saved& saved, const Needs& needs) {
  Gradients out;
  if (needs.x) out.x = at::zeros_like(saved.x);
  if (needs.weight) out.weight = at::zeros_like(saved.weight);
  if (needs.bias) out.bias = at::zeros({saved.weight.size(0)}, saved.weight.options());
  if (needs.b) out.b = at::zeros_like(*saved.b);
  return out;
}

Second Second::zeros(const Saved& saved, const SecondNeeds& needs) {
  Second out;
  out.grad = at::zeros_like(saved.grad);
  if (needs.weight) out.weight = at::zeros_like(saved.weight);
  return out;
}

}  // namespace bcos::transform
