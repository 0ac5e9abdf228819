#include "cpu/conv2d.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include "cpu/depthwise.h"
#include "cpu/layer.h"
#include "cpu/linear.h"
#include "cpu/range.h"
#include "cpu/row_gemm.h"
#include "cpu/weight_norm.h"

namespace bcos::cpu {
namespace {

bool is_channels_last(const at::Tensor& t) {
  return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

// Memory order of a result: where both formats describe it, the one with the longer rows.
bool walks_channels_last(const at::Tensor& t) {
  return t.is_contiguous(at::MemoryFormat::ChannelsLast) &&
         (!t.is_contiguous() || t.size(2) * t.size(3) == 1);
}

at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tiling output_tiling(const Window& w, const Formula& f, bool channels_last, int64_t batch, int64_t filters) {
  return {channels_last, batch, w.g.groups, filters / f.max_out / w.g.groups, w.out_h * w.out_w};
}

constexpr int64_t kPacksFrom = 2048;  // pixels: with fewer, packing the weight costs more than the tiles gain

// A pointwise convolution of channels_last pixels is a linear layer of them.
bool is_linear(const at::Tensor& x, const at::Tensor& weight, const Window& w, at::ScalarType out_dtype,
               bool channels_last) {
  return channels_last && w.pointwise() && w.g.groups == 1 && RowGemm::serves(x, weight, out_dtype);
}

at::Tensor products(const at::Tensor& x, const at::Tensor& weight, const Window& w) {
  return at::convolution(x, weight.to(x.scalar_type()), std::nullopt, w.g.stride, w.g.padding, w.g.dilation,
                         false, {0, 0}, w.g.groups);
}

Outputs of_products(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    const Window& w, const Formula& formula, at::ScalarType out_dtype) {
  const auto format = format_of(is_channels_last(x) || is_channels_last(weight));
  const auto filters = weight.contiguous(format);
  if (depthwise_serves(x, weight, w, formula)) {
    auto out = depthwise(x.contiguous(at::MemoryFormat::ChannelsLast), filters, bias, w, formula, out_dtype);
    for (auto* t : {&out.y, &out.l})
      if (t->defined()) *t = t->contiguous(format);
    return out;
  }
  const auto input = x.contiguous(format);
  if (x.size(0) * w.out_h * w.out_w >= kPacksFrom &&
      is_linear(x, weight, w, out_dtype, format == at::MemoryFormat::ChannelsLast)) {
    Outputs out;
    const auto empty = [&](int64_t channels) {
      return at::empty({x.size(0), channels, w.out_h, w.out_w}, x.options().memory_format(format));
    };
    if (formula.has_norm()) out.n = empty(1);
    tiled_forward(input, filters, bias, output_tiling(w, formula, true, x.size(0), weight.size(0)), formula,
                  empty(weight.size(0)), out);
    return out;
  }
  auto z = products(input, filters, w);
  const bool channels_last = walks_channels_last(z);
  if (!channels_last) z = z.contiguous();
  Outputs out;
  if (formula.has_norm())
    out.n = patch_norm(x.contiguous(format_of(channels_last)), channels_last, w, formula);
  finish_forward(z, filters, bias, output_tiling(w, formula, channels_last, x.size(0), weight.size(0)),
                 formula, out_dtype, out);
  if (!saves_norm(weight, w.g)) out.n = at::Tensor();
  return out;
}

}  // namespace

Outputs conv2d(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
               const Window& w, const Formula& formula, at::ScalarType out_dtype) {
  auto out = of_products(x, weight, bias, w, formula, out_dtype);
  if (out.finite || !formula.unit) return out;
  return of_products(x, unit_weight(weight), bias, w, without_unit(formula), out_dtype);
}

Gradients conv2d_backward(const Saved& given, const Window& w, const Formula& formula, const Needs& needs) {
  if (given.x.numel() == 0) return Gradients::zeros(given, needs);
  Saved saved = given;
  const bool by_depthwise = !needs.b && depthwise_serves(given.x, given.weight, w, formula);
  const bool channels_last =
      by_depthwise || is_channels_last(given.x) || is_channels_last(given.weight) || w.out_h * w.out_w == 1;
  const auto format = format_of(channels_last);
  for (auto* t : {&saved.grad, &saved.y, &saved.n, &saved.l, &saved.winner, &saved.x})
    if (t->defined()) *t = t->contiguous(format);
  saved.weight = given.weight.contiguous(given.weight.suggest_memory_format());

  const auto as_given = [&](Gradients out) {
    if (out.x) out.x = out.x->contiguous(given.x.suggest_memory_format());
    return out;
  };
  bool small_norm = false;
  if (by_depthwise) {
    auto out = depthwise_backward(saved, w, formula, needs, small_norm);
    if (!small_norm || !loses_linear(saved.x, formula)) return as_given(std::move(out));
  }
  if (formula.has_norm() && !saved.n.defined()) saved.n = patch_norm(saved.x, channels_last, w, formula);
  if (formula.power == Power::Two && (small_norm || holds_small_norm(saved.n, formula)) &&
      loses_linear(saved.x, formula)) {
    const auto weight = formula.unit ? unit_weight(saved.weight) : saved.weight;
    saved.l = recover_linear(saved, products(saved.x, weight, w), formula).contiguous(format);
    saved.y = at::Tensor();
    return as_given(conv2d_backward(saved, w, with_linear(formula), needs));
  }
  const int64_t batch = saved.x.size(0), filters = saved.weight.size(0);
  Gradients out;
  const bool tiled = needs.x && is_linear(saved.x, saved.weight, w, saved.grad.scalar_type(), channels_last);
  const auto pass = (tiled ? tiled_backward : untiled_backward)(
      saved, {batch, filters, w.out_h, w.out_w}, format,
      output_tiling(w, formula, channels_last, batch, filters), formula, needs, out);
  if (needs.bias) out.bias = out.bias->to(saved.weight.scalar_type());
  const bool vendor_x = needs.x && !tiled;
  if (!vendor_x && !needs.weight) return as_given(std::move(out));

  auto [dx, dw, unused] = at::convolution_backward(pass.u, saved.x, saved.weight.to(saved.x.scalar_type()),
                                                   std::nullopt, w.g.stride, w.g.padding, w.g.dilation, false,
                                                   {0, 0}, w.g.groups, {vendor_x, needs.weight, false});
  if (vendor_x) {
    dx = dx.contiguous(format);
    if (formula.has_norm() && !formula.explain) {
      const Tiling inputs{channels_last, batch, w.g.groups, dx.size(1) / w.g.groups, w.in_h * w.in_w};
      add_norm_gradient(saved.x, spread(pass.t, channels_last, w), inputs, dx);
    }
    out.x = dx;
  }
  if (needs.weight) out.weight = finish_weight_gradient(saved, formula, dw);
  return as_given(std::move(out));
}

}  // namespace bcos::cpu
