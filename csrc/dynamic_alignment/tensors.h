// The tensors of dynamic alignment units, as their backends take and return them.
#pragma once

#include "dynamic_alignment/spec.h"

namespace bcos::dynamic_alignment {

struct Inputs {
  at::Tensor x;         // [N, C, H, W]
  at::Tensor h;         // [N, R, OH, OW]
  at::Tensor weight;    // [P*O, R]: row p*O + o is of value p and output o
  OptionalTensor bias;  // [P*O]
};

struct Outputs {
  at::Tensor y;     // [N, O, OH, OW]
  at::Tensor norm;  // [O, pixels], in the type of sums
  at::Tensor l;     // as norm; empty with detach
};

// What a backward takes. Its gradient may be of several rows of the dynamic linear map, [rows*N, O, OH, OW].
struct Saved {
  at::Tensor grad, norm, l;
};

struct Needs {
  bool x, h, weight, bias;

  // Whether the dynamic weights are differentiated.
  bool training() const { return h || weight || bias; }
};

struct Gradients {
  OptionalTensor x, h, weight, bias;
};

}  // namespace bcos::dynamic_alignment
