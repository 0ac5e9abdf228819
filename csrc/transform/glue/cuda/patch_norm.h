// The patch norm by kernels of its own, and its part of dx.
#pragma once

#include "transform/glue/cuda/weights.h"

namespace bcos::transform::glue::cuda {

// The sum of squares of each pixel and group, [pixels, groups].
at::Tensor squares(const DeviceCall& call, const at::Tensor& x);

// n, written to `saved` where that is defined; undefined for b = 1.
at::Tensor norm(const DeviceCall& call, const at::Tensor& x, const at::Tensor& saved);

// n without the epsilon beside its root, where the call divides x by it; else undefined.
at::Tensor roots(const DeviceCall& call, const at::Tensor& x);

// Forms new weights, and n as `norm` does: in one launch where one kernel does both.
at::Tensor form_with_norm(const DeviceCall& call, const Weights& weights, const at::Tensor& x,
                          const at::Tensor& saved);

// The sum of x v over every patch, in the order of n.
at::Tensor patch_products(const DeviceCall& call, const at::Tensor& x, const at::Tensor& v);

// The sum of t over the outputs that read each pixel of x, for a call of one group and stride 1 whose padding
// is not wider than its kernel.
at::Tensor pooled(const DeviceCall& call, const at::Tensor& t);

// x * (sum of t over the outputs that read the pixel)
at::Tensor norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t);

// dx += x * (sum of t over the outputs that read the pixel), in place; x is divided by its norm first, where
// the call divides x
void add_norm_gradient(const DeviceCall& call, const at::Tensor& x, const at::Tensor& t,
                       const at::Tensor& dx);

}  // namespace bcos::transform::glue::cuda
