#include "transform/cpu/range.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/where.h>

#include <limits>

#include "common/cpu/types.h"
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
  auto y = saved.y.to(saved.n.scalar_type()), l = z, n = saved.n;
  if (call.spec.max_out > 1)
    l = z.unflatten(1, {y.size(1), call.spec.max_out})
            .gather(2, saved.winner.to(at::kLong).unsqueeze(2))
            .squeeze(2);
  if (n.size(1) > 1 && n.size(1) < y.size(1)) n = n.repeat_interleave(y.size(1) / n.size(1), 1);
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
