// 1/|w| of each filter, filters divided by their norms, and the gradient through that.
#pragma once

#include <ATen/core/Tensor.h>

namespace bcos::transform::cpu {

// alpha of each filter, in the type of sums: 1/|w|, 0 for a zero filter; ones where filters are not
// normalised
at::Tensor filter_alpha(const at::Tensor& weight, bool unit);
template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, A* alpha);

// The same for filters [begin, end), on the calling thread
template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, int64_t begin, int64_t end, A* alpha);

// d, shaped as the weight, times alpha of each filter, in the type of sums
at::Tensor times_alpha(const at::Tensor& d, const at::Tensor& weight);

// w/|w|, 0 for a zero filter, in the weight's dtype
at::Tensor unit_weight(const at::Tensor& weight);

// dw = d - w (w . d) / (w . w), in place of d = alpha * (gradient at w/|w|); both of one memory format
void weight_norm_backward(const at::Tensor& weight, at::Tensor& d);

// The same for filters [begin, end), which have `size` values each
void weight_norm_backward(const float* weight, float* d, int64_t size, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
