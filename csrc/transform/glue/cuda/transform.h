// The transform on a GPU, by one of its candidates.
#pragma once

#include "transform/glue/cuda/candidate.h"

namespace bcos::transform::glue::cuda {

// A backend (glue/transform.h) of the candidate of a name.
struct Cuda {
  const Candidate& candidate;
  bool large;  // the larger tile of the products
  bool tf32;   // products of fp32 may round their operands
  bool divides_x;
  bool takes_rows;

  Cuda(const std::string& name, bool large, bool tf32, bool divides_x);

  Call make_call(const Spec& spec, const Inputs& inputs) const;
  Outputs forward(const Call& sizes, const Inputs& inputs) const;
  Gradients backward(const Call& sizes, const Saved& given, const Needs& needs) const;
  Second second(const Call& sizes, const Saved& given, const at::Tensor& v, const SecondNeeds& needs) const;

 private:
  DeviceCall on_device(const Call& call, const at::Tensor& x, const at::Tensor& weight) const;
  void check_second() const;
};

}  // namespace bcos::transform::glue::cuda
