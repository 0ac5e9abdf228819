#include "transform/cpu/tiled.h"

#include "common/cpu/empty.h"
#include "common/cpu/row_gemm.h"
#include "common/cpu/types.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/scale.h"

namespace bcos::transform::cpu {
namespace {

// Values of a row of x. What reads a tile first waits for it to come into cache: where rows are shorter, the
// norms wait less than the product would, and where they are this long, the product waits less.
constexpr int64_t kLongRow = 512;

}  // namespace

Outputs tiled_forward(const Call& call, const Inputs& inputs, const Tiling& outputs) {
  const PackedFilters filters(inputs.weight, call.spec.unit, call.dtype);
  Outputs out;
  if (call.has_norm()) out.n = empty_norm(call, inputs.x, true);
  float* n = mutable_pointer<float>(out.n);
  const auto k = call.constants<float>();
  const bool norms_first = call.channels < kLongRow;
  with_values<float>(inputs.x, [&](const auto* x) {
    finish_forward(call, inputs, filters.alpha, {}, outputs, out, [&](int64_t begin, int64_t end, float* z) {
      if (n && norms_first) row_norms(x, n, call.channels, k, begin, end);
      filters.gemm.forward(x + begin * call.channels, z, end - begin);
      if (n && !norms_first) row_norms(x, n, call.channels, k, begin, end);
    });
  });
  return out;
}

BackwardPass tiled_backward(const Call& call, const Saved& saved, at::MemoryFormat format,
                            const Tiling& outputs, const Needs& needs, Gradients& gradients) {
  auto dx = empty_gradient(call, saved.x);
  const int64_t filters = call.filters, size = call.channels, shares = at::get_num_threads();
  const RowGemm gemm(saved.weight, false);
  std::optional<RowWgrad> wgrad;
  if (needs.weight && RowWgrad::pays(filters, size, outputs.units(), shares))
    wgrad.emplace(filters, size, shares);
  const AddScaled<float> add{saved.x.const_data_ptr<float>(),
                             nullptr,
                             dx.mutable_data_ptr<float>(),
                             {true, 1, 1, size, outputs.units()}};
  const auto follow = [&](const BackwardPass& pass, const BackwardTile& tile) {
    const auto& [share, begin, end, u_row] = tile;
    const float* u = pass.u.const_data_ptr<float>() + u_row * filters;
    gemm.dgrad(u, add.dx + begin * size, end - begin);
    if (wgrad) wgrad->add(share, u, add.x + begin * size, end - begin);
    if (!saved.norm_gradient(call)) return;
    auto mine = add;
    mine.r = static_cast<const float*>(pass.t.get());
    run(mine, begin, end);
  };
  const bool keeps_u = needs.weight && !wgrad;
  auto pass = start_backward(call, saved, format, outputs, needs, gradients, {follow, keeps_u});
  gradients.x = dx;
  if (wgrad)
    gradients.weight = finish_weight_gradient(call, saved.weight, wgrad->sum().view(saved.weight.sizes()));
  return pass;
}

}  // namespace bcos::transform::cpu
