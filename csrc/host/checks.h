// Argument checks: after them nothing below reads or writes out of bounds. Failures are ValueError or
// TypeError.
#pragma once

#include <vector>

#include "host/params.h"

namespace bcos::host {

using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<at::Tensor>;

// What the kernels of a backend take.
struct Takes {
  c10::DeviceType device;
  std::vector<at::ScalarType> dtypes;
};

void check_input(const Takes& takes, const at::Tensor& x, int64_t rank);
void check_weight(const at::Tensor& x, const at::Tensor& weight);
void check_bias(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias);
void check_out_dtype(const at::Tensor& x, at::ScalarType out_dtype);
// The weight has as many channels as x in each group.
void check_channels(const at::Tensor& x, const at::Tensor& weight, int64_t groups);

Geometry make_geometry(const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups);
Window make_window(const at::Tensor& x, at::IntArrayRef kernel, const Geometry& geometry);
// Reads b's value where b is on the CPU; filters is O*M.
Formula make_formula(const at::Tensor& x, int64_t filters, int64_t groups, const OptionalTensor& b,
                     int64_t max_out, double exponent, bool unit, double eps_inside, double eps_outside,
                     double cos_eps, bool exact_two);
// The saved tensors of a backward with an output of this shape; drops those the formula does not use, and n
// where n_shape is empty.
Saved make_saved(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                 const OptionalTensor& b, const OptionalTensor& y, const at::Tensor& n, const at::Tensor& l,
                 const at::Tensor& winner, at::IntArrayRef y_shape, at::IntArrayRef n_shape,
                 const Formula& formula);
Needs make_needs(const std::vector<bool>& needs, const OptionalTensor& b);

}  // namespace bcos::host
