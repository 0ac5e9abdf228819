#include "transform/cpu/vendor.h"

#include <ATen/ops/_convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>

#include <utility>

#include "common/cpu/empty.h"
#include "transform/cpu/steps.h"

namespace bcos::transform::cpu {
namespace {

at::DimVector no_output_padding(const Call& call) {
  return at::DimVector(call.spec.stride.size(), 0);
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

}  // namespace

at::Tensor vendor_product(const Call& call, const at::Tensor& x, const at::Tensor& weight,
                          const OptionalTensor& bias) {
  const auto& s = call.spec;
  const auto w = in_type(weight, call.dtype);
  if (s.linear) return at::linear(x, w, bias);
  // at::convolution asks what cuDNN may do, and then torch's dispatcher for this
  return at::_convolution(x, w, bias, s.stride, s.padding, s.dilation, false, no_output_padding(call),
                          s.groups, false, false, false, false);
}

std::tuple<at::Tensor, at::Tensor> vendor_gradients(const Call& call, const at::Tensor& u,
                                                    const at::Tensor& x, const at::Tensor& weight,
                                                    bool needs_x, bool needs_weight) {
  at::Tensor dx, dw;
  if (!needs_x && !needs_weight) return {dx, dw};
  const auto& s = call.spec;
  const auto w = in_type(weight, call.dtype);
  if (s.linear) {
    if (needs_x) dx = at::mm(u, w);
    if (needs_weight) dw = at::mm(u.t(), x);
    return {dx, dw};
  }
  const auto run = [&](const at::Tensor& images, at::IntArrayRef stride, bool of_x, bool of_weight) {
    const auto [of_images, of_filters, unused] =
        at::convolution_backward(u, images, w, std::nullopt, stride, s.padding, s.dilation, false,
                                 no_output_padding(call), s.groups, {of_x, of_weight, false});
    if (of_x) dx = of_images;
    if (of_weight) dw = of_filters;
  };
  const bool apart = needs_weight && overruns(call);
  if (apart) {
    auto stride = s.stride;
    auto seen = x;
    for (size_t i = 0; i < stride.size(); i++) {
      const int64_t axis = int64_t(i) + 2;
      seen = seen.slice(axis, 0, seen.size(axis), std::exchange(stride[i], 1));
    }
    run(seen.contiguous(x.suggest_memory_format()), stride, false, true);
  }
  if (needs_x || (needs_weight && !apart))
    run(call.rows == 1 ? x : empty_gradient(call, x), s.stride, needs_x, needs_weight && !apart);
  return {dx, dw};
}

}  // namespace bcos::transform::cpu
