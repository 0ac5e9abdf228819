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
};

struct Needs {
  bool x, weight, bias;
};

struct Gradients {
  OptionalTensor x, weight, bias;  // those of weight and bias in the type of sums
};

}  // namespace bcos::norm
