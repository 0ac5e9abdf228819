#include "transform/cpu/linear.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>

#include "common/cpu/empty.h"
#include "common/cpu/row_gemm.h"
#include "common/cpu/types.h"
#include "transform/cpu/few_rows.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/range.h"
#include "transform/cpu/scale.h"
#include "transform/cpu/steps.h"
#include "transform/cpu/unit_filters.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {
namespace {

// Values of a row of x. What reads a tile first waits for it to come into cache: where rows are shorter, the
// norms wait less than the product would, and where they are this long, the product waits less.
constexpr int64_t kLongRow = 512;
constexpr int64_t kPacksFrom = 128;  // rows: with fewer, packing the weight costs more than the tiles gain

Tiling output_tiling(const Call& call) {
  return {true, 1, 1, call.outputs(), call.images};
}

Outputs of_products(const Call& call, const Inputs& given) {
  Inputs inputs{given.x.contiguous(), given.weight.contiguous(), given.bias, given.b};
  const auto& [x, weight, bias, b] = inputs;
  if (call.images >= kPacksFrom && RowGemm::serves_forward(x, weight, call.spec.out_dtype))
    return tiled_forward(call, inputs, output_tiling(call));
  Outputs out;
  if (call.has_norm()) out.n = patch_norm(call, x, true);
  if (few_rows_serve(x, weight, call.spec.out_dtype)) {
    const auto z = empty(call.z_shape(), x.options()), alpha = empty({call.filters}, x.options());
    few_rows_forward(x, weight, call.spec.unit, z, alpha);
    finish_forward(call, inputs, alpha, z, output_tiling(call), out);
    return out;
  }
  const auto in_product = take_bias(call, inputs);
  const auto z = at::linear(x, in_type(weight, call.dtype), in_product);
  finish_forward(call, inputs, {}, z, output_tiling(call), out);
  return out;
}

}  // namespace

Outputs linear(const Call& call, const Inputs& inputs) {
  return within_range(call, inputs, of_products);
}

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

Gradients linear_backward(const Call& call, const Saved& given, const Needs& needs) {
  if (given.x.numel() == 0) return Gradients::zeros(given, needs);
  if (divides_filters(call, given.weight))
    return by_unit_filters(call, given, [&](const Call& divided, const Saved& saved) {
      return linear_backward(divided, saved, needs);
    });
  constexpr auto format = at::MemoryFormat::Contiguous;
  auto saved = in_format(given, format);
  if (!takes_map(call, needs)) saved.apply_map();
  if (call.has_norm() && !saved.n.defined()) saved.n = patch_norm(call, saved.x, true);
  if (replaces_y(call, saved, [&](const at::Tensor& w) { return at::linear(saved.x, w.to(call.dtype)); }))
    return linear_backward(with_l(call), saved, needs);

  Gradients out;
  const bool tiled = needs.x && RowGemm::serves(saved.x, saved.weight, call.spec.out_dtype);
  const auto pass = tiled ? tiled_backward(call, saved, format, output_tiling(call), needs, out)
                          : start_backward(call, saved, format, output_tiling(call), needs, out);
  if (needs.bias) out.bias = in_type(*out.bias, saved.weight.scalar_type());
  if (needs.x && !tiled) {
    auto dx = at::mm(pass.u, in_type(saved.weight, call.dtype));
    if (saved.norm_gradient(call)) add_norm_gradient(call, saved.x, pass.t, true, dx);
    out.x = dx;
  }
  if (needs.weight && !out.weight && few_rows_serve_wgrad(saved.x, saved.weight, call.spec.out_dtype))
    out.weight = few_rows_wgrad(pass.u, saved.x, saved.weight, call.spec.unit);
  if (needs.weight && !out.weight)
    out.weight = finish_weight_gradient(call, saved.weight, at::mm(pass.u.t(), saved.x));
  return out;
}

Second linear_second(const Call& call, const Saved& given, const at::Tensor& given_v,
                     const SecondNeeds& needs) {
  if (given.x.numel() == 0) return Second::zeros(given, needs);
  if (divides_filters(call, given.weight))
    return by_unit_filters(call, given, [&](const Call& divided, const Saved& saved) {
      return linear_second(divided, saved, given_v, needs);
    });
  auto saved = in_format(given, at::MemoryFormat::Contiguous);
  const auto v = given_v.contiguous();
  if (call.has_norm() && !saved.n.defined()) saved.n = patch_norm(call, saved.x, true);
  if (replaces_y(call, saved, [&](const at::Tensor& w) { return at::linear(saved.x, w.to(call.dtype)); }))
    return linear_second(with_l(call), saved, v, needs);
  Second out;
  at::Tensor m;
  const bool with_m = call.norm_gradient() && !needs.detached;
  if (with_m) m = patch_products(call, saved.x, v, true);
  const auto weight = saved.weight.to(call.dtype);
  const auto pass =
      finish_second(call, saved, at::linear(v, weight), m, output_tiling(call), needs.detached, out);
  if (with_m && needs.x) out.x = at::mul(v, at::from_blob(pass.t.get(), saved.n.sizes(), saved.n.options()));
  if (needs.weight) out.weight = finish_weight_gradient(call, saved.weight, at::mm(pass.u.t(), v));
  return out;
}

}  // namespace bcos::transform::cpu
