#include "transform/cpu/convolution.h"

#include <ATen/ops/_convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros_like.h>

#include "common/cpu/empty.h"
#include "common/cpu/row_gemm.h"
#include "common/layout.h"
#include "transform/cpu/depthwise.h"
#include "transform/cpu/linear.h"
#include "transform/cpu/narrow_groups.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/patches.h"
#include "transform/cpu/range.h"
#include "transform/cpu/scale.h"
#include "transform/cpu/steps.h"
#include "transform/cpu/unit_filters.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {
namespace {

bool is_channels_last(const at::Tensor& t) {
  return bcos::is_channels_last(t.suggest_memory_format());
}

// The memory format in which a derivative is formed
at::MemoryFormat derivative_format(const Call& call, const Saved& saved) {
  const bool channels_last =
      is_channels_last(saved.x) || is_channels_last(saved.weight) || call.out_plane() == 1;
  return image_format(channels_last, saved.x.dim());
}

// Memory order of a result: where both formats describe it, the one with the longer rows.
bool walks_channels_last(const at::Tensor& t) {
  return t.is_contiguous(image_format(true, t.dim())) &&
         (!t.is_contiguous() || c10::multiply_integers(t.sizes().slice(2)) == 1);
}

Tiling output_tiling(const Call& call, bool channels_last) {
  return {channels_last, call.images, call.spec.groups, call.group_outputs(), call.out_plane()};
}

// Pixels: with fewer, packing the weight costs more than the product. The vendor packs one of bf16 itself.
constexpr int64_t kPacksFrom = 4;

// A pointwise convolution of channels_last pixels is a linear layer of them.
bool is_linear(const Call& call, bool channels_last) {
  return channels_last && call.window.pointwise() && call.spec.groups == 1;
}

at::DimVector no_output_padding(const Call& call) {
  return at::DimVector(call.spec.stride.size(), 0);
}

at::Tensor products(const Call& call, const at::Tensor& x, const at::Tensor& weight,
                    const OptionalTensor& bias = {}) {
  const auto& s = call.spec;
  // at::convolution asks what cuDNN may do, and then torch's dispatcher for this
  return at::_convolution(x, in_type(weight, call.dtype), bias, s.stride, s.padding, s.dilation, false,
                          no_output_padding(call), s.groups, false, false, false, false);
}

// Whether the vendor's wgrad is given only the pixels that a 1x1 convolution with a stride sees. oneDNN
// gathers them in a workspace, and writes beyond its end where a pixel of channels_last memory is shorter
// than a register (its issue 6035): plain layers crash there.
bool overruns(const Call& call) {
  constexpr int64_t kRegister = 16;
  const auto& [depth, plane, bordered] = call.window;
  const auto is_sampled = [](const Axis& axis) { return axis.kernel == 1 && axis.padding == 0; };
  return call.channels < kRegister && is_sampled(depth) && is_sampled(plane.rows) &&
         is_sampled(plane.columns) && !call.window.pointwise();
}

at::Tensor weight_products(const Call& call, const at::Tensor& u, const at::Tensor& x,
                           const at::Tensor& weight) {
  auto stride = call.spec.stride;
  auto seen = x;
  if (overruns(call)) {
    for (size_t i = 0; i < stride.size(); i++) {
      const int64_t axis = int64_t(i) + 2;
      seen = seen.slice(axis, 0, seen.size(axis), std::exchange(stride[i], 1));
    }
    seen = seen.contiguous(x.suggest_memory_format());
  }
  const auto& s = call.spec;
  return std::get<1>(at::convolution_backward(u, seen, in_type(weight, call.dtype), std::nullopt, stride,
                                              s.padding, s.dilation, false, no_output_padding(call), s.groups,
                                              {false, true, false}));
}

// dx of a call that NarrowGroups serves
at::Tensor narrow_gradient(const Call& call, const Saved& saved, const BackwardPass& pass) {
  const NarrowGroups product(call, saved.weight, false);
  auto dx = empty_gradient(call, saved.x);
  const auto inputs = input_tiling(call, true);
  std::optional<Spread<float>> r;
  if (saved.norm_gradient(call)) r.emplace(call, static_cast<const float*>(pass.t.get()), true);
  const AddScaled<float> add{pointer<float>(saved.x), r ? r->data() : nullptr, mutable_pointer<float>(dx),
                             inputs};
  run_tiles(call.rows * inputs.units(), [&](int64_t begin, int64_t end) {
    product.run(pass.u.const_data_ptr<float>(), add.dx + begin * call.channels, begin, end);
    if (r) run(add, begin, end);
  });
  return dx;
}

Outputs of_products(const Call& call, const Inputs& given) {
  const bool wants_channels_last = is_channels_last(given.x) || is_channels_last(given.weight);
  const auto format = image_format(wants_channels_last, given.x.dim());
  Inputs inputs = given;
  inputs.weight = given.weight.contiguous(format);
  inputs.x = given.x.contiguous(format);
  if (depthwise_serves(call)) return depthwise(call, inputs, wants_channels_last);
  const bool packs = call.images * call.out_plane() >= kPacksFrom || call.dtype == at::kBFloat16;
  if (packs && is_linear(call, wants_channels_last) &&
      RowGemm::serves_forward(inputs.x, inputs.weight, call.spec.out_dtype))
    return tiled_forward(call, inputs, output_tiling(call, true));
  if (patches_serve_forward(call, inputs.x, inputs.weight, wants_channels_last))
    return patches_forward(call, inputs, output_tiling(call, true));
  Outputs out;
  if (wants_channels_last && NarrowGroups::serves(call, inputs.x, inputs.weight)) {
    if (call.has_norm()) out.n = patch_norm(call, inputs.x, true);
    const NarrowGroups product(call, inputs.weight, true);
    const auto step = [&](int64_t begin, int64_t end, float* z) {
      product.run(inputs.x.const_data_ptr<float>(), z, begin, end);
    };
    finish_forward(call, inputs, {}, {}, output_tiling(call, true), out, step);
    return out;
  }
  auto z = products(call, inputs.x, inputs.weight, take_bias(call, inputs));
  const bool channels_last = walks_channels_last(z);
  if (!channels_last) z = z.contiguous();
  if (call.has_norm())
    out.n = patch_norm(call, given.x.contiguous(image_format(channels_last, z.dim())), channels_last);
  finish_forward(call, inputs, {}, z, output_tiling(call, channels_last), out);
  if (!call.saves_n()) out.n = at::Tensor();
  return out;
}

}  // namespace

Outputs convolution(const Call& call, const Inputs& inputs) {
  return within_range(call, inputs, of_products);
}

Gradients convolution_backward(const Call& call, const Saved& given, const Needs& needs) {
  if (given.x.numel() == 0) return Gradients::zeros(given, needs);
  if (divides_filters(call, given.weight))
    return by_unit_filters(call, given, [&](const Call& divided, const Saved& saved) {
      return convolution_backward(divided, saved, needs);
    });
  const bool by_depthwise = !needs.b && !given.dl.defined() && depthwise_serves(call);
  const auto format = derivative_format(call, given);
  const bool channels_last = bcos::is_channels_last(format);
  auto saved = in_format(given, format);
  const auto as_given = [&](Gradients out) {
    if (out.x) out.x = out.x->contiguous(given.x.suggest_memory_format());
    return out;
  };
  bool small_norm = false;
  if (by_depthwise || !takes_map(call, needs)) saved.apply_map();
  if (by_depthwise) {
    auto out = depthwise_backward(call, saved, needs, channels_last, small_norm);
    if (!small_norm || !loses_l(call, saved.x)) return as_given(std::move(out));
  }
  if (call.has_norm() && !saved.n.defined()) saved.n = patch_norm(call, saved.x, channels_last);
  if (replaces_y(call, saved, [&](const at::Tensor& weight) { return products(call, saved.x, weight); }))
    return as_given(convolution_backward(with_l(call), saved, needs));
  Gradients out;
  const bool tiled = needs.x && is_linear(call, channels_last) &&
                     RowGemm::serves(saved.x, saved.weight, call.spec.out_dtype);
  const auto tiling = output_tiling(call, channels_last);
  const auto pass = tiled ? tiled_backward(call, saved, format, tiling, needs, out)
                          : start_backward(call, saved, format, tiling, needs, out);
  if (needs.bias) out.bias = in_type(*out.bias, saved.weight.scalar_type());
  const bool narrow = needs.x && channels_last && NarrowGroups::serves_dgrad(call, saved.x, saved.weight);
  if (narrow) out.x = narrow_gradient(call, saved, pass);
  at::Tensor dx, dw;
  if (needs.x && !out.x && patches_serve(call, saved.x, saved.weight, channels_last))
    dx = patches_dgrad(call, pass.u, saved.x, saved.weight.contiguous(format));
  const bool vendor_x = needs.x && !out.x && !dx.defined(), vendor_weight = needs.weight && !out.weight;
  const bool apart = vendor_weight && overruns(call);
  if (apart) dw = weight_products(call, pass.u, saved.x, saved.weight);
  if (vendor_x || (vendor_weight && !apart)) {
    const auto& s = call.spec;
    const auto x = call.rows == 1 ? saved.x : empty_gradient(call, saved.x);
    const auto found = at::convolution_backward(
        pass.u, x, in_type(saved.weight, call.dtype), std::nullopt, s.stride, s.padding, s.dilation, false,
        no_output_padding(call), s.groups, {vendor_x, vendor_weight && !apart, false});
    if (vendor_x) dx = std::get<0>(found).contiguous(format);
    if (!apart) dw = std::get<1>(found);
  }
  if (dx.defined()) {
    if (saved.norm_gradient(call)) add_norm_gradient(call, saved.x, pass.t, channels_last, dx);
    out.x = dx;
  }
  if (vendor_weight) out.weight = finish_weight_gradient(call, saved.weight, dw);
  return as_given(std::move(out));
}

Second convolution_second(const Call& call, const Saved& given, const at::Tensor& given_v,
                          const SecondNeeds& needs) {
  if (given.x.numel() == 0) return Second::zeros(given, needs);
  if (divides_filters(call, given.weight))
    return by_unit_filters(call, given, [&](const Call& divided, const Saved& saved) {
      return convolution_second(divided, saved, given_v, needs);
    });
  const auto format = derivative_format(call, given);
  const bool channels_last = bcos::is_channels_last(format);
  auto saved = in_format(given, format);
  const auto v = given_v.contiguous(format);
  if (call.has_norm() && !saved.n.defined()) saved.n = patch_norm(call, saved.x, channels_last);
  if (replaces_y(call, saved, [&](const at::Tensor& weight) { return products(call, saved.x, weight); }))
    return convolution_second(with_l(call), saved, v, needs);
  Second out;
  at::Tensor m;
  const bool with_m = call.norm_gradient() && !needs.detached;
  if (with_m) m = patch_products(call, saved.x, v, channels_last);
  const auto tiling = output_tiling(call, channels_last);
  BackwardPass pass;
  if (call.images * call.out_plane() >= kPacksFrom && is_linear(call, channels_last) &&
      RowGemm::serves(v, saved.weight, call.spec.out_dtype)) {
    const RowGemm gemm(saved.weight, true);
    const auto z = empty(call.z_shape(), v.options().memory_format(format));
    pass = finish_second(call, saved, z, m, tiling, needs.detached, out, [&](int64_t begin, int64_t end) {
      gemm.forward(v.const_data_ptr<float>() + begin * call.channels,
                   z.mutable_data_ptr<float>() + begin * call.filters, end - begin);
    });
  } else {
    const auto z = products(call, v, saved.weight).contiguous(format);
    pass = finish_second(call, saved, z, m, tiling, needs.detached, out);
  }
  if (with_m && needs.x) {
    auto dx = at::zeros_like(v);
    add_norm_gradient(call, v, pass.t, channels_last, dx);
    out.x = dx;
  }
  if (needs.weight) {
    const auto dw = weight_products(call, pass.u, v, saved.weight);
    out.weight = finish_weight_gradient(call, saved.weight, dw);
  }
  return out;
}

}  // namespace bcos::transform::cpu
