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
};

// Which gradients are asked for.
struct Needs {
  bool x, weight, bias, b;
};

struct Gradients {
  OptionalTensor x, weight, bias, b;

  static Gradients zeros(const Saved& saved, const Needs& needs);  // of a call without a value to sum over
};

}  // namespace bcos::transform
