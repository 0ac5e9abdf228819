// The memory that the passes walk.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

namespace bcos::norm::cpu {

// Whether the channels of a position lie side by side.
inline bool is_channels_last(const at::Tensor& t) {
  return t.dim() == 2 || (!t.is_contiguous() && t.movedim(1, -1).is_contiguous());
}

inline at::Tensor as_channels_last(const at::Tensor& t) {
  return t.movedim(1, -1).contiguous().movedim(-1, 1);
}

// t in memory of one of the two forms, copied if it is of neither.
inline at::Tensor in_form(const at::Tensor& t, bool channels_last) {
  return channels_last ? as_channels_last(t) : t.contiguous();
}

// A value for every channel in the type of sums; `otherwise` where there is none.
inline at::Tensor per_channel(const std::optional<at::Tensor>& t, double otherwise, int64_t channels,
                              at::ScalarType dtype) {
  return t ? t->to(dtype).contiguous() : at::full({channels}, otherwise, at::TensorOptions(dtype));
}

}  // namespace bcos::norm::cpu
