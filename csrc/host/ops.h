// The entry points of the module, as Python calls them.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <tuple>

#include "host/checks.h"

namespace bcos::host {

inline const Takes kCpu{c10::kCPU, {at::kFloat, at::kDouble, at::kBFloat16}};

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
inline Forward pack(const Outputs& out, const at::Tensor& x) {
  const auto or_empty = [&](const at::Tensor& t, at::ScalarType dtype) {
    return t.defined() ? t : at::empty({0}, x.options().dtype(dtype));
  };
  return {out.y, or_empty(out.n, accumulate_type(x.scalar_type())), or_empty(out.l, out.y.scalar_type()),
          or_empty(out.winner, at::kByte)};
}
inline Backward pack(Gradients&& g) {
  return {g.x, g.weight, g.bias, g.b};
}

}  // namespace bcos::host
