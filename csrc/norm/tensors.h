// The tensors of a norm, as its backends take and return them.
#pragma once

#include "norm/spec.h"

namespace bcos::norm {

struct Inputs {
  at::Tensor x;                            // [N, C, positions ...]
  OptionalTensor weight, bias, mean, var;  // [C]
};

struct Outputs {
  at::Tensor y, mean, var;  // mean and var are undefined where they were given
};

// What a backward takes: mean and var are those that the forward used.
struct Saved {
  at::Tensor grad, x;
  OptionalTensor weight;
  at::Tensor mean, var;  // mean is undefined where only var was given
  at::Tensor dvar = {};  // what a second derivative adds to the gradient of var; often undefined
};

struct Needs {
  bool x, weight, bias;
  bool map = false;  // the map of dx in place of dx: for statistics that the images share, over channels
};

struct Gradients {
  OptionalTensor x, weight, bias;  // those of weight and bias in the type of sums
  // [4, C] in the type of sums, of_grad, of_x, mean and offset of each channel:
  // dx = grad of_grad + (x - mean) of_x + offset.
  OptionalTensor map = {};
};

// Which gradients of a second derivative are asked for beside that of grad.
struct SecondNeeds {
  bool weight, var;
};

// What a second derivative returns in an explanation mode: the gradients of <v, dx>, where dx is the gradient
// of x that a backward returned for the gradient `grad` of y. A backward takes that of var on to x; it is
// undefined where var is a constant.
struct Second {
  at::Tensor grad, var;
  OptionalTensor weight;  // in the type of sums
};

}  // namespace bcos::norm
