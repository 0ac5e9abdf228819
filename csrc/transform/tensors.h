// The tensors of a transform's two directions.
#pragma once

#include "transform/spec.h"

namespace bcos::transform {

struct Inputs {
  at::Tensor x, weight;
  OptionalTensor bias, b;
};

struct Outputs {
  at::Tensor y, n, l, winner;  // undefined where the call does not save them; y is always there
  bool finite = true;          // every product z, before its filter is divided by its norm
};

// What a backward takes: the gradient of y, inputs, and the outputs that Call says are saved. The others are
// undefined.
struct Saved {
  at::Tensor grad, x, weight, y, n, l, winner;
  OptionalTensor b;
  at::Tensor dn = {}, dl = {};  // what a second derivative adds to the gradients of n and l; often undefined
  // [4, outputs] in the type of sums, often undefined: of_grad, of_y, mean and offset of each output. The
  // gradient of y is then grad of_grad + (y - mean) of_y + offset.
  at::Tensor map = {};

  void apply_map();  // forms the gradient of y in a pass of its own, and drops the map

  bool norm_gradient(const Call& call) const {  // whether dx has a part through the norm
    return dn.defined() || call.norm_gradient();
  }
};

// Which gradients are asked for.
struct Needs {
  bool x, weight, bias, b;
};

struct Gradients {
  OptionalTensor x, weight, bias, b;

  static Gradients zeros(const Saved& saved, const Needs& needs);  // of a call without a value to sum over
};

// Which gradients of a second derivative are asked for, and how the scale was differentiated.
struct SecondNeeds {
  bool x, weight;
  bool detached;  // the scale is a constant of every derivative
};

// What a second derivative returns: the gradients of <v, dx>, where dx is the gradient of x that a backward
// returned for the gradient `grad` of y. Those of n and l are undefined where the scale is a constant; a
// backward takes them on to x and weight, together with the gradient of y.
struct Second {
  at::Tensor grad, n, l;
  OptionalTensor x, weight;

  static Second zeros(const Saved& saved, const SecondNeeds& needs);
};

}  // namespace bcos::transform
