// The memory that the passes walk.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "common/checks.h"
#include "common/cpu/lines.h"
#include "common/layout.h"

namespace bcos::norm::cpu {

// Whether the channels of a position lie side by side.
inline bool is_channels_last(const at::Tensor& t) {
  return t.dim() == 2 || (!t.is_contiguous() && lies_in_rows(t));
}

inline at::Tensor as_channels_last(const at::Tensor& t) {
  return lies_in_rows(t) ? t : t.movedim(1, -1).contiguous().movedim(-1, 1);
}

// t in memory of one of the two forms, copied if it is of neither.
inline at::Tensor in_form(const at::Tensor& t, bool channels_last) {
  return channels_last ? as_channels_last(t) : t.contiguous();
}

// A result in one of the two forms, with the strides that torch gives to a tensor like `given`.
inline at::Tensor with_strides_of(const at::Tensor& given, const at::Tensor& result) {
  if (given.is_contiguous() || is_channels_last(given)) return in_form(result, is_channels_last(given));
  const auto found = at::empty_like(given, result.options());
  found.copy_(result);
  return found;
}

// A value for every channel in the type A of sums; `otherwise` where there is none.
template <typename A>
class PerChannel {
 public:
  PerChannel(const OptionalTensor& t, A otherwise, int64_t channels) {
    if (t) {
      kept_ = t->to(c10::CppTypeToScalarType<A>::value).contiguous();
    } else {
      filled_.assign(channels, otherwise);
    }
  }
  const A* data() const { return kept_.defined() ? kept_.const_data_ptr<A>() : filled_.data(); }
  A operator[](int64_t channel) const { return data()[channel]; }

 private:
  at::Tensor kept_;
  bcos::cpu::Lines<A> filled_;
};

// The sums as a gradient of channels in the type A of sums.
template <typename A>
at::Tensor as_gradient(const double* sums, int64_t channels) {
  const auto found = at::empty({channels}, at::TensorOptions(c10::CppTypeToScalarType<A>::value));
  std::copy_n(sums, channels, found.template mutable_data_ptr<A>());
  return found;
}

}  // namespace bcos::norm::cpu
