// The kernels that serve the two kinds of norms: those with statistics over the batch, all values or groups,
// and those at positions.
#pragma once

#include "norm/glue/cuda/call.h"

namespace bcos::norm::glue::cuda {

// What a forward takes: dense tensors, undefined where there are none.
struct ForwardPass {
  const DeviceCall& call;
  at::Tensor x, weight, bias;
  at::Tensor mean, var;  // of the type of sums: to be written unless they are given
};

// What a backward takes: dense tensors, undefined where there are none.
struct BackwardPass {
  const DeviceCall& call;
  at::Tensor grad, x, weight;
  at::Tensor mean, var;  // of the type of sums, as all below
  const Needs& needs;
  at::Tensor dweight, dbias;  // to be written; defined where needed
  at::Tensor dvar = {};       // what a second derivative adds to the gradient of var
  at::Tensor map = {};        // [4, C], to be written; defined where needed

  // Whether dx has the part of the variance, and whether it has that of the mean.
  bool through_var() const { return of_x() && !call.given && !call.frozen; }
  bool through_mean() const { return of_x() && !call.given && call.spec.centered; }
  bool of_x() const { return needs.x || needs.map; }
};

void shared_forward(const ForwardPass& f, const at::Tensor& y);
void shared_backward(const BackwardPass& b, const at::Tensor& dx);  // dx is undefined where it is not needed

void positions_forward(const ForwardPass& f, const at::Tensor& y);
void positions_backward(const BackwardPass& b, const at::Tensor& dx);

// The second derivative of a frozen backward, with v as x of `b`, whose mean they form where the norm is
// centered. They write dgrad and the sums of `b`, and return the gradient of var, undefined unless `of_var`.
at::Tensor shared_second(BackwardPass b, const at::Tensor& dgrad, bool of_var);
at::Tensor positions_second(BackwardPass b, const at::Tensor& dgrad, bool of_var);

// dγ and dβ of sums that have the factor r already unless `var` is defined, and those of the channels, [C,
// 2], where `sums` is.
void add_channels(const BackwardPass& b, const at::Tensor& partial, const kernels::Shape& shape,
                  const at::Tensor& var, const at::Tensor& sums);

}  // namespace bcos::norm::glue::cuda
