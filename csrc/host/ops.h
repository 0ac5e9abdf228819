// The entry points of the module, as Python calls them.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <tuple>

#include "host/checks.h"

namespace bcos::host {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;  // y, n, l, winner
using Backward =
    std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;  // dx, dw, dbias, db

Forward conv2d(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& b, const Ints& stride, const Ints& padding, const Ints& dilation,
               int64_t groups, int64_t max_out, double exponent, bool unit, double eps_inside,
               double eps_outside, double cos_eps, bool exact_two, at::ScalarType out_dtype);

Backward conv2d_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n,
                         const at::Tensor& l, const at::Tensor& winner, const Ints& stride,
                         const Ints& padding, const Ints& dilation, int64_t groups, int64_t max_out,
                         double exponent, bool unit, double eps_inside, double eps_outside, double cos_eps,
                         bool exact_two, bool explain, const std::vector<bool>& needs);

Forward linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
               const OptionalTensor& b, int64_t max_out, double exponent, bool unit, double eps_inside,
               double eps_outside, double cos_eps, bool exact_two, at::ScalarType out_dtype);

Backward linear_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                         const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n,
                         const at::Tensor& l, const at::Tensor& winner, int64_t max_out, double exponent,
                         bool unit, double eps_inside, double eps_outside, double cos_eps, bool exact_two,
                         bool explain, const std::vector<bool>& needs);

at::Tensor patch_norm(const at::Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                      const Ints& dilation, int64_t groups, double eps_inside, double eps_outside);

at::Tensor weight_norm(const at::Tensor& weight);

// The kernels call ATen below autograd and autocast: gradients and casts are the caller's business.
struct PlainAten {
  at::AutoDispatchBelowAutograd below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Tensors the formula does not produce come out empty: the schema of an op has no optional outputs.
Forward pack(const Outputs& out, const at::Tensor& x);
inline Backward pack(Gradients&& g) {
  return {g.x, g.weight, g.bias, g.b};
}

}  // namespace bcos::host
