// |w| of each filter, and the gradient through w/|w|.
#pragma once

#include <ATen/core/Tensor.h>

namespace bcos::transform::cpu {

// weight [filters, ...] -> |w| [filters], fp32 (fp64 for double)
at::Tensor weight_norm(const at::Tensor& weight);

// alpha of each filter, in the type of sums: 1/|w|, 0 for a zero filter; ones where filters are not
// normalised
at::Tensor filter_alpha(const at::Tensor& weight, bool unit);
template <typename A>
void filter_alpha(const at::Tensor& weight, bool unit, A* alpha);

// The same for filters [begin, end), on the calling thread; not of fp64
void filter_alpha(const at::Tensor& weight, bool unit, int64_t begin, int64_t end, float* alpha);

// w/|w|, 0 for a zero filter, in the weight's dtype
at::Tensor unit_weight(const at::Tensor& weight);

// dw = d - w (w . d) / (w . w), in place of d = alpha * (gradient at w/|w|); both of one memory format
void weight_norm_backward(const at::Tensor& weight, at::Tensor& d);

// The same for filters [begin, end), which have `size` values each
void weight_norm_backward(const float* weight, float* d, int64_t size, int64_t begin, int64_t end);

}  // namespace bcos::transform::cpu
