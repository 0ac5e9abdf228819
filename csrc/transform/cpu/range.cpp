#include "transform/cpu/range.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/any.h>
#include <ATen/ops/div.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/logical_or.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/where.h>

#include <limits>

#include "common/cpu/types.h"
#include "common/layout.h"
#include "transform/cpu/patch_norm.h"
#include "transform/cpu/vendor.h"
#include "transform/cpu/weight_norm.h"

namespace bcos::transform::cpu {

using namespace bcos::cpu;

namespace {

template <typename A>
bool any_equal(const A* values, int64_t size, A wanted) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < size; i++) count += values[i] == wanted;
  return count > 0;
}

// Whether a value other than 0 is smaller than limit.
template <typename T, typename A>
bool any_below(const T* values, int64_t size, A limit) {
  int64_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < size; i++) {
    const A v = magnitude(A(values[i]));
    count += v < limit && v != 0;
  }
  return count > 0;
}

// The norm of each output's group, of a shape that broadcasts to that of y.
at::Tensor of_outputs(const at::Tensor& n, const at::Tensor& y) {
  const bool narrows = n.size(1) > 1 && n.size(1) < y.size(1);
  return narrows ? n.repeat_interleave(y.size(1) / n.size(1), 1) : n;
}

// Whether n of a patch is that of a zero patch.
bool holds_small_norm(const Call& call, const at::Tensor& n) {
  bool found = false;
  with_type(n.scalar_type(), [&](auto zero) {
    using A = Accumulate<decltype(zero)>;
    found = any_equal(n.const_data_ptr<A>(), n.numel(), root_norm(A(0), call.constants<A>()));
  });
  return found;
}

// l at b = 2: recovered from y, or the winner of z = x * w/|w| where y has underflowed.
at::Tensor recover_l(const Call& call, const Saved& saved, const at::Tensor& z) {
  auto y = saved.y.to(saved.n.scalar_type()), l = z;
  if (call.spec.max_out > 1)
    l = z.unflatten(1, {y.size(1), call.spec.max_out})
            .gather(2, saved.winner.to(at::kLong).unsqueeze(2))
            .squeeze(2);
  const auto n = of_outputs(saved.n, y);
  const double least = y.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                                      : double(std::numeric_limits<float>::min());
  const auto magnitudes = y.abs();
  const auto recovered = at::mul(y.sign(), at::mul(magnitudes.sqrt(), n.sqrt()));  // y n may underflow
  return at::where(at::lt(magnitudes, least), l.to(y.scalar_type()), recovered).to(saved.y.scalar_type());
}

}  // namespace

bool loses_l(const Call& call, const at::Tensor& x) {
  bool found = false;
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulate<T>;
    const A least_y = std::numeric_limits<A>::min(), least_n = root_norm(A(0), call.constants<A>());
    found = any_below(x.const_data_ptr<T>(), x.numel(), A(1e6) * std::sqrt(least_y) * std::sqrt(least_n));
  });
  return found;
}

bool needs_double(const Call& call, const Saved& saved) {
  // below the least norm of a published convolution, which is 1e-3
  constexpr float small = 1.0f / 1024, least_y = std::numeric_limits<float>::min();
  if (call.dtype == at::kDouble || !call.has_norm() || !saved.norm_gradient(call)) return false;
  if (root_norm(0.0f, call.constants<float>()) >= small) return false;
  const auto format = saved.x.suggest_memory_format();
  const auto norm = saved.n.defined()
                        ? saved.n.contiguous()
                        : patch_norm(call, saved.x.contiguous(format), bcos::is_channels_last(format));
  if (!any_below(norm.const_data_ptr<float>(), norm.numel(), small)) return false;

  const auto v = (saved.l.defined() ? saved.l : saved.y).to(at::kFloat).abs(), n = of_outputs(norm, v);
  // at b = 2 |l| = sqrt(|y| n), which is not known where y is below the normal numbers
  const auto l = saved.l.defined() ? v : at::mul(at::where(at::lt(v, least_y), 0, v).sqrt(), n.sqrt());
  const double outside = call.spec.eps_outside;
  // r has lost digits where n is below 16 eps_outside. That matters where |l| is far above r, which takes a
  // bias or long filters.
  const auto lost = at::logical_and(at::lt(n, 16 * outside), at::gt(l, at::mul(at::sub(n, outside), 16)));
  // dL/dn is about a power of the cosine, and a second derivative divides it by n once more. 1e30 leaves
  // eight of float's powers of ten to the gradient that it is multiplied by.
  const auto exceeds = at::gt(at::pow(at::div(l, n), call.b), at::mul(n.square(), 1e30));
  return at::any(at::logical_or(lost, exceeds)).item<bool>();
}

Call in_double(Call call) {
  call.dtype = call.spec.out_dtype = at::kDouble;
  return call;
}

Saved in_double(Saved saved) {
  for (auto* t : {&saved.grad, &saved.x, &saved.weight, &saved.y, &saved.l, &saved.dn, &saved.dl, &saved.map})
    if (t->defined()) *t = t->to(at::kDouble);
  saved.n = at::Tensor();
  return saved;
}

Gradients in_types_of(const Saved& given, Gradients found) {
  if (found.x) found.x = found.x->to(given.x.scalar_type());
  for (auto* t : {&found.weight, &found.bias})
    if (*t) *t = (*t)->to(given.weight.scalar_type());
  return found;
}

Second in_types_of(const Saved& given, Second found) {
  found.grad = found.grad.to(given.grad.scalar_type());
  if (found.n.defined()) found.n = found.n.to(accumulate_type(given.x.scalar_type()));
  if (found.l.defined()) found.l = found.l.to(given.grad.scalar_type());
  if (found.x) found.x = found.x->to(given.x.scalar_type());
  if (found.weight) found.weight = found.weight->to(given.weight.scalar_type());
  return found;
}

Call with_l(Call call) {
  call.power = Power::General;
  call.cos_eps = 0;
  return call;
}

bool replaces_y(const Call& call, Saved& saved) {
  if (call.power != Power::Two || !holds_small_norm(call, saved.n) || !loses_l(call, saved.x)) return false;
  const auto z = vendor_product(call, saved.x, call.spec.unit ? unit_weight(saved.weight) : saved.weight);
  saved.apply_map();
  saved.l = recover_l(call, saved, z).contiguous(saved.y.suggest_memory_format());
  saved.y = at::Tensor();
  return true;
}

}  // namespace bcos::transform::cpu
