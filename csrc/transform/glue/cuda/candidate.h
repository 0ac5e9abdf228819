// A candidate is one way to serve a direction of a call. Each is defined in a file of its own in candidates/,
// and enters itself in the list by its name.
#pragma once

#include <string>
#include <vector>

#include "transform/glue/cuda/weights.h"

namespace bcos::transform::glue::cuda {

struct ForwardCall {
  const DeviceCall& call;
  at::Tensor x, bias,
      b;  // dense images; bias and b are undefined where there is none, b is of the type of sums
  Weights weights;
  Outputs& out;  // already allocated: to be written
  at::Tensor n;  // of a candidate that takes it: formed, and in `out` where it is saved; undefined for b = 1
};

struct BackwardCall {
  const DeviceCall& call;
  const Saved& saved;  // dense images
  const Weights& weights;
  at::Tensor b;  // of the type of sums, or undefined
  const Needs& needs;
};

// What a candidate's backward returns, undefined where not needed.
struct Parts {
  at::Tensor dx;
  at::Tensor partial;  // shares of the gradient of the products' operand, as weight_gradient takes them
  at::Tensor dbias, db;
};

struct SecondCall {
  const DeviceCall& call;
  const Saved& saved;  // dense images
  const Weights& weights;
  at::Tensor v;  // as x
  const SecondNeeds& needs;
};

// What a candidate's second derivative returns, undefined where not needed or where the scale is a constant.
struct SecondParts {
  at::Tensor grad, x, partial, n, l;  // partial: as that of Parts
};

struct Candidate {
  const char* name;
  bool takes_planes;  // it serves contiguous NCHW tensors as they are
  void (*forward)(const ForwardCall& c);
  Parts (*backward)(const BackwardCall& c);
  SecondParts (*second)(const SecondCall& c) = nullptr;  // its backward then adds dn and dl of c.saved
  bool takes_rows = false;                               // its backward serves calls of several rows
  bool takes_map = false;                                // its backward serves calls with the map of Saved
  bool takes_axes = false;                               // it serves calls with three axes or a border
  bool takes_double = false;                             // it serves calls of fp64
  bool takes_norm = false;                               // its forward takes n
};

// Defined at namespace scope, it enters a candidate in the list while the module is loaded.
struct Registered {
  explicit Registered(const Candidate& candidate);
};

const std::vector<Candidate>& candidates();

// Raises where two candidates have the same name.
void check_names(const std::vector<Candidate>& candidates);

// The candidate of this name; ValueError, with the names there are, where there is none.
const Candidate& candidate_of(const std::string& name);

std::vector<std::string> candidate_names();

}  // namespace bcos::transform::glue::cuda
