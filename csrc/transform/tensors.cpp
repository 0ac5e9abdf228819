#include "transform/tensors.h"

#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sub.h>
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

void Saved::apply_map() {
  if (!map.defined()) return;
  Ints of_output(y.dim(), 1);
  of_output[1] = map.size(1);
  const auto sums = map.scalar_type();
  const auto row = [&](int64_t i) { return map.select(0, i).view(of_output); };
  const auto from_mean = at::sub(y.to(sums), row(2));
  grad =
      at::add(at::addcmul(at::mul(grad.to(sums), row(0)), from_mean, row(1)), row(3)).to(grad.scalar_type());
  map = at::Tensor();
}

Second Second::zeros(const Saved& saved, const SecondNeeds& needs) {
  Second out;
  out.grad = at::zeros_like(saved.grad);
  if (needs.weight) out.weight = at::zeros_like(saved.weight);
  return out;
}

}  // namespace bcos::transform
