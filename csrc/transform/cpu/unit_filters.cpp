#include "transform/cpu/unit_filters.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>

#include <vector>

#include "transform/cpu/steps.h"

namespace bcos::transform::cpu {

Call without_unit(Call call) {
  call.spec.unit = false;
  return call;
}

bool divides_filters(const Call& call, const at::Tensor& weight) {
  return call.spec.unit && call.power == Power::One && call.dtype == at::kBFloat16 &&
         weight.scalar_type() != call.dtype;
}

void replace_lost(Outputs& out, const Outputs& again) {
  const auto kept = at::isfinite(out.y);
  at::where_out(out.y, kept, out.y, again.y);
  if (out.l.defined()) at::where_out(out.l, kept, out.l, again.l);
  if (out.winner.defined()) at::where_out(out.winner, kept, out.winner, again.winner);
}

at::Tensor through_norm(const Call& call, const at::Tensor& weight, const at::Tensor& d) {
  std::vector<int64_t> shape(weight.dim(), 1);
  shape[0] = -1;
  return finish_weight_gradient(call, weight, at::mul(d, filter_alpha(weight, true).view(shape)));
}

}  // namespace bcos::transform::cpu
