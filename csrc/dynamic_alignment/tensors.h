// The tensors of dynamic alignment units, as their backends take and return them.
#pragma once

#include "dynamic_alignment/spec.h"

namespace bcos::dynamic_alignment {

struct Inputs {
  at::Tensor x, h, weight;  // [N, C, H, W], [N, R, OH, OW], [P*O, R]: row p*O + o is of value p and output o
  OptionalTensor bias;      // [P*O]
};

struct Outputs {
  at::Tensor y, norm,
      l;  // [N, O, OH, OW], and [O, pixels] twice, in the type of sums; l is empty with detach
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
