#include "cpu/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include "cpu/layer.h"
#include "cpu/patch_norm.h"
#include "cpu/range.h"
#include "cpu/row_gemm.h"
#include "cpu/scale.h"
#include "cpu/types.h"
#include "cpu/weight_norm.h"

namespace bcos::cpu {
namespace {

constexpr int64_t kPacksFrom = 1024;  // rows: with fewer, packing the weight costs more than the tiles gain

Outputs of_products(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const Formula& formula, at::ScalarType out_dtype) {
  const auto input = x.contiguous(), filters = weight.contiguous();
  const int64_t rows = x.size(0);
  const Tiling outputs{true, 1, 1, weight.size(0) / formula.max_out, rows};
  Outputs out;
  if (formula.has_norm()) out.n = at::empty({rows, 1}, x.options().dtype(accumulate_type(x.scalar_type())));
  if (rows >= kPacksFrom && RowGemm::serves(x, weight, out_dtype)) {
    const auto z = at::empty({rows, weight.size(0)}, x.options());
    tiled_forward(input, filters, bias, outputs, formula, z, out);
    return out;
  }
  if (formula.has_norm()) {
    square_sums(input, {true, 1, 1, x.size(1), rows}, out.n);
    finish_norm(out.n, formula);
  }
  const auto z = at::linear(input, filters.to(x.scalar_type()));
  finish_forward(z, filters, bias, outputs, formula, out_dtype, out);
  return out;
}

}  // namespace

Outputs linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
               const Formula& formula, at::ScalarType out_dtype) {
  auto out = of_products(x, weight, bias, formula, out_dtype);
  if (out.finite || !formula.unit) return out;
  return of_products(x, unit_weight(weight), bias, without_unit(formula), out_dtype);
}

void tiled_forward(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   const Tiling& outputs, const Formula& formula, const at::Tensor& z, Outputs& out) {
  const RowGemm gemm(weight, true);
  const float* in = x.const_data_ptr<float>();
  float *product = z.mutable_data_ptr<float>(), *n = mutable_pointer<float>(out.n);
  const int64_t size = weight.numel() / weight.size(0);
  const auto k = formula.constants<float>();
  finish_forward(z, weight, bias, outputs, formula, at::kFloat, out, [&](int64_t begin, int64_t end) {
    if (n) row_norms(in, n, size, k, begin, end);
    gemm.forward(in, product, begin, end);
  });
}

BackwardPass tiled_backward(const Saved& saved, at::IntArrayRef z_shape, at::MemoryFormat format,
                            const Tiling& outputs, const Formula& formula, const Needs& needs,
                            Gradients& gradients) {
  auto dx = at::empty_like(saved.x);
  const RowGemm gemm(saved.weight, false);
  const bool with_t = formula.has_norm() && !formula.explain;
  const int64_t size = saved.weight.numel() / saved.weight.size(0);
  AddScaled<float> add{saved.x.const_data_ptr<float>(),
                       nullptr,
                       dx.mutable_data_ptr<float>(),
                       {true, 1, 1, size, outputs.units()}};
  const auto pass = start_backward(saved, z_shape, format, outputs, formula, needs, gradients,
                                   [&](const BackwardPass& tile, int64_t begin, int64_t end) {
                                     gemm.dgrad(tile.u.const_data_ptr<float>(), add.dx, begin, end);
                                     if (!with_t) return;
                                     auto mine = add;
                                     mine.r = tile.t.const_data_ptr<float>();
                                     run(mine, begin, end);
                                   });
  gradients.x = dx;
  return pass;
}

BackwardPass untiled_backward(const Saved& saved, at::IntArrayRef z_shape, at::MemoryFormat format,
                              const Tiling& outputs, const Formula& formula, const Needs& needs,
                              Gradients& gradients) {
  return start_backward(saved, z_shape, format, outputs, formula, needs, gradients);
}

Gradients linear_backward(const Saved& given, const Formula& formula, const Needs& needs) {
  if (given.x.numel() == 0) return Gradients::zeros(given, needs);
  Saved saved = given;
  for (auto* t : {&saved.grad, &saved.x, &saved.weight, &saved.y, &saved.n, &saved.l, &saved.winner})
    if (t->defined()) *t = t->contiguous();
  if (formula.power == Power::Two && holds_small_norm(saved.n, formula) && loses_linear(saved.x, formula)) {
    const auto weight = formula.unit ? unit_weight(saved.weight) : saved.weight;
    saved.l = recover_linear(saved, at::linear(saved.x, weight.to(saved.x.scalar_type())), formula);
    saved.y = at::Tensor();
    return linear_backward(saved, with_linear(formula), needs);
  }

  const int64_t rows = saved.x.size(0), filters = saved.weight.size(0);
  Gradients out;
  const bool tiled = needs.x && RowGemm::serves(saved.x, saved.weight, saved.grad.scalar_type());
  const auto pass = (tiled ? tiled_backward : untiled_backward)(
      saved, {rows, filters}, at::MemoryFormat::Contiguous, {true, 1, 1, filters / formula.max_out, rows},
      formula, needs, out);
  if (needs.bias) out.bias = out.bias->to(saved.weight.scalar_type());
  if (needs.x && !tiled) {
    auto dx = at::mm(pass.u, saved.weight.to(saved.x.scalar_type()));
    if (formula.has_norm() && !formula.explain)
      add_norm_gradient(saved.x, pass.t, {true, 1, 1, saved.x.size(1), rows}, dx);
    out.x = dx;
  }
  if (needs.weight) out.weight = finish_weight_gradient(saved, formula, at::mm(pass.u.t(), saved.x));
  return out;
}

}  // namespace bcos::cpu
