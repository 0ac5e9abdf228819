#include "transform/cpu/transform.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include "common/cpu/empty.h"
#include "common/cpu/row_gemm.h"
#include "common/layout.h"
#include "transform/cpu/depthwise.h"
#include "transform/cpu/few_rows.h"
#include "transform/cpu/narrow_groups.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/patches.h"
#include "transform/cpu/range.h"
#include "transform/cpu/scale.h"
#include "transform/cpu/steps.h"
#include "transform/cpu/tiled.h"
#include "transform/cpu/vendor.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {
namespace {

bool is_channels_last(const at::Tensor& t) {
  return bcos::is_channels_last(t.suggest_memory_format());
}

// Whether a result is walked as channels_last: where both formats describe its memory, the one with the
// longer rows.
bool walks_channels_last(const at::Tensor& t) {
  return t.is_contiguous(image_format(true, t.dim())) &&
         (!t.is_contiguous() || c10::multiply_integers(t.sizes().slice(2)) == 1);
}

// The rows of a linear layer count as channels_last.
bool wants_channels_last(const Call& call, const at::Tensor& x, const at::Tensor& weight) {
  return call.spec.linear || is_channels_last(x) || is_channels_last(weight);
}

Tiling output_tiling(const Call& call, bool channels_last) {
  return {channels_last, call.images, call.spec.groups, call.group_outputs(), call.out_plane()};
}

// Whether packing the weight costs less than the tiles of a product of rows gain. The vendor packs one of
// bf16 itself in a convolution.
bool packs(const Call& call) {
  constexpr int64_t kRows = 128, kPixels = 4;
  if (call.spec.linear) return call.images >= kRows;
  return call.images * call.out_plane() >= kPixels || call.dtype == at::kBFloat16;
}

// A forward by whatever products serve it best.
Outputs forward_of(const Call& call, const Inputs& given) {
  const bool in_rows = wants_channels_last(call, given.x, given.weight);
  const auto format = image_format(in_rows, given.x.dim());
  Inputs inputs{given.x.contiguous(format), given.weight.contiguous(format), given.bias, given.b};
  const auto& x = inputs.x;
  const auto& weight = inputs.weight;
  const auto dtype = call.spec.out_dtype;
  if (depthwise_serves(call)) return depthwise(call, inputs, in_rows);
  if (packs(call) && is_product_of_rows(call, in_rows) && RowGemm::serves_forward(x, weight, dtype))
    return tiled_forward(call, inputs, output_tiling(call, true));
  if (patches_serve_forward(call, x, weight, in_rows))
    return patches_forward(call, inputs, output_tiling(call, true));
  Outputs out;
  if (in_rows && NarrowGroups::serves(call, x, weight)) {
    if (call.has_norm()) out.n = patch_norm(call, x, true);
    const NarrowGroups product(call, weight, true);
    const auto step = [&](int64_t begin, int64_t end, float* z) {
      product.run(x.const_data_ptr<float>(), z, begin, end);
    };
    finish_forward(call, inputs, {}, {}, output_tiling(call, true), out, step);
    return out;
  }
  if (call.spec.linear && few_rows_serve(x, weight, dtype)) {
    if (call.has_norm()) out.n = patch_norm(call, x, true);
    const auto z = empty(call.z_shape(), x.options()), alpha = empty({call.filters}, x.options());
    few_rows_forward(x, weight, call.spec.unit, z, alpha);
    finish_forward(call, inputs, alpha, z, output_tiling(call, true), out);
    return out;
  }
  const auto bias = take_bias(call, inputs);
  auto z = vendor_product(call, x, weight, bias);
  const bool channels_last = walks_channels_last(z);
  if (!channels_last) z = z.contiguous();
  if (call.has_norm())
    out.n = patch_norm(call, x.contiguous(image_format(channels_last, z.dim())), channels_last);
  finish_forward(call, inputs, {}, z, output_tiling(call, channels_last), out);
  if (!call.saves_n()) out.n = at::Tensor();
  return out;
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

// How a derivative is formed: its memory, and the tensors that it takes in it.
struct Derivative {
  bool channels_last;
  at::MemoryFormat format;
  Tiling tiling;
  Saved saved;

  Derivative(const Call& call, const Saved& given)
      : channels_last(wants_channels_last(call, given.x, given.weight) || call.out_plane() == 1),
        format(image_format(channels_last, given.x.dim())),
        tiling(output_tiling(call, channels_last)),
        saved(in_format(given, format)) {}

  void form_norm(const Call& call) {
    if (call.has_norm() && !saved.n.defined()) saved.n = patch_norm(call, saved.x, channels_last);
  }
};

Gradients gradients_of(const Call& call, const Saved& given, const Needs& needs) {
  Derivative d(call, given);
  auto& saved = d.saved;
  const auto as_given = [&](Gradients out) {
    if (out.x) out.x = out.x->contiguous(given.x.suggest_memory_format());
    return out;
  };
  const bool by_depthwise = !needs.b && !given.dl.defined() && depthwise_serves(call);
  if (by_depthwise || !takes_map(call, needs)) saved.apply_map();
  if (by_depthwise) {
    bool small_norm = false;
    auto out = depthwise_backward(call, saved, needs, d.channels_last, small_norm);
    if (!small_norm || !loses_l(call, saved.x)) return as_given(std::move(out));
  }
  d.form_norm(call);
  if (replaces_y(call, saved)) return as_given(gradients_of(with_l(call), saved, needs));
  Gradients out;
  const auto dtype = call.spec.out_dtype;
  const bool tiled =
      needs.x && is_product_of_rows(call, d.channels_last) && RowGemm::serves(saved.x, saved.weight, dtype);
  const auto pass = tiled ? tiled_backward(call, saved, d.format, d.tiling, needs, out)
                          : start_backward(call, saved, d.format, d.tiling, needs, out);
  if (needs.bias) out.bias = in_type(*out.bias, saved.weight.scalar_type());
  if (needs.x && d.channels_last && NarrowGroups::serves_dgrad(call, saved.x, saved.weight))
    out.x = narrow_gradient(call, saved, pass);
  if (needs.weight && !out.weight && call.spec.linear && few_rows_serve_wgrad(saved.x, saved.weight, dtype))
    out.weight = few_rows_wgrad(pass.u, saved.x, saved.weight, call.spec.unit);
  const bool by_patches = patches_serve(call, saved.x, saved.weight, d.channels_last);
  auto [dx, dw] = vendor_gradients(call, pass.u, saved.x, saved.weight, needs.x && !out.x && !by_patches,
                                   needs.weight && !out.weight);
  if (needs.x && !out.x) {
    dx = by_patches ? patches_dgrad(call, pass.u, saved.x, saved.weight.contiguous(d.format))
                    : dx.contiguous(d.format);
    if (saved.norm_gradient(call)) add_norm_gradient(call, saved.x, pass.t, d.channels_last, dx);
    out.x = dx;
  }
  if (dw.defined()) out.weight = finish_weight_gradient(call, saved.weight, dw);
  return as_given(std::move(out));
}

Second second_of(const Call& call, const Saved& given, const at::Tensor& given_v, const SecondNeeds& needs) {
  Derivative d(call, given);
  auto& saved = d.saved;
  const auto v = given_v.contiguous(d.format);
  d.form_norm(call);
  if (replaces_y(call, saved)) return second_of(with_l(call), saved, v, needs);
  Second out;
  at::Tensor m;
  const bool with_m = call.norm_gradient() && !needs.detached;
  if (with_m) m = patch_products(call, saved.x, v, d.channels_last);
  BackwardPass pass;
  if (!call.spec.linear && packs(call) && is_product_of_rows(call, d.channels_last) &&
      RowGemm::serves(v, saved.weight, call.spec.out_dtype)) {
    const RowGemm gemm(saved.weight, true);
    const auto z = empty(call.z_shape(), v.options().memory_format(d.format));
    pass = finish_second(call, saved, z, m, d.tiling, needs.detached, out, [&](int64_t begin, int64_t end) {
      gemm.forward(v.const_data_ptr<float>() + begin * call.channels,
                   z.mutable_data_ptr<float>() + begin * call.filters, end - begin);
    });
  } else {
    const auto z = vendor_product(call, v, saved.weight).contiguous(d.format);
    pass = finish_second(call, saved, z, m, d.tiling, needs.detached, out);
  }
  if (with_m && needs.x && call.spec.linear) {  // in the type of sums: whoever adds it up rounds it
    out.x = at::mul(v, at::from_blob(pass.t.get(), saved.n.sizes(), saved.n.options()));
  } else if (with_m && needs.x) {
    auto dx = at::zeros_like(v);
    add_norm_gradient(call, v, pass.t, d.channels_last, dx);
    out.x = dx;
  }
  if (needs.weight) {
    const auto dw = std::get<1>(vendor_gradients(call, pass.u, v, saved.weight, false, true));
    out.weight = finish_weight_gradient(call, saved.weight, dw);
  }
  return out;
}

// Whether the filters of a call are divided by their norms before the product, and not the product after it:
// at b = 1 a gradient in half precision is not rounded before its product, and alpha would round it. Filters
// of half precision would be rounded in its place.
bool divides_filters(const Call& call, const at::Tensor& weight) {
  return call.spec.unit && call.power == Power::One && call.dtype == at::kBFloat16 &&
         weight.scalar_type() != call.dtype;
}

// The same call for filters that are divided by their norms already.
Call without_unit(Call call) {
  call.spec.unit = false;
  return call;
}

// Puts those values of `again` into `out` that are not finite there.
void replace_lost(Outputs& out, const Outputs& again) {
  const auto kept = at::isfinite(out.y);
  at::where_out(out.y, kept, out.y, again.y);
  if (out.l.defined()) at::where_out(out.l, kept, out.l, again.l);
  if (out.winner.defined()) at::where_out(out.winner, kept, out.winner, again.winner);
}

// d at w/|w| as a gradient at w
at::Tensor through_norm(const Call& call, const at::Tensor& weight, const at::Tensor& d) {
  return finish_weight_gradient(call, weight, times_alpha(d, weight));
}

// derivative(call, saved), with filters that are divided where the forward divided them
template <typename F>
auto by_filters(const Call& call, const Saved& given, F&& derivative) {
  if (!divides_filters(call, given.weight)) return derivative(call, given);
  Saved saved = given;
  saved.weight = unit_weight(given.weight);
  auto out = derivative(without_unit(call), saved);
  if (out.weight) out.weight = through_norm(call, given.weight, *out.weight);
  return out;
}

}  // namespace

Outputs forward(const Call& call, const Inputs& inputs) {
  const auto of_unit = [&] {
    return forward_of(without_unit(call), {inputs.x, unit_weight(inputs.weight), inputs.bias, inputs.b});
  };
  if (divides_filters(call, inputs.weight)) return of_unit();
  auto out = forward_of(call, inputs);
  // The products of long filters may overflow before they are divided by the norms: what they lose comes from
  // filters that are divided, and rounded once more. Every other value stays.
  if (!out.finite && call.spec.unit) replace_lost(out, of_unit());
  return out;
}

Gradients backward(const Call& call, const Saved& saved, const Needs& needs) {
  if (saved.x.numel() == 0) return Gradients::zeros(saved, needs);
  const auto form = [&](const Call& used, const Saved& with) { return gradients_of(used, with, needs); };
  return within_double(call, saved,
                       [&](const Call& used, const Saved& with) { return by_filters(used, with, form); });
}

Second second(const Call& call, const Saved& saved, const at::Tensor& v, const SecondNeeds& needs) {
  if (saved.x.numel() == 0) return Second::zeros(saved, needs);
  const auto form = [&](const Call& used, const Saved& with) {
    return second_of(used, with, v.to(used.dtype), needs);
  };
  return within_double(call, saved,
                       [&](const Call& used, const Saved& with) { return by_filters(used, with, form); });
}

}  // namespace bcos::transform::cpu
