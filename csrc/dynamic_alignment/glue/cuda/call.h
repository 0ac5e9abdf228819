// A call of dynamic alignment units on a GPU, and what its kernels take of it.
#pragma once

#include <string>

#include "common/cuda/tensors.h"
#include "dynamic_alignment/cuda/launch.h"
#include "dynamic_alignment/tensors.h"

namespace bcos::dynamic_alignment::glue::cuda {

using namespace bcos::cuda;
namespace kernels = bcos::dynamic_alignment::cuda;

struct DeviceCall : Call {
  bool bias, tf32;

  DeviceCall(const Call& call, bool bias, bool tf32);

  // The sizes, where rows of h and of the weight have `depth` values.
  kernels::Shape shape(int64_t depth) const;

  std::string sizes() const;  // for the error of a kernel
};

// h [pixels, K] and the weight [P*O, K], with the bias as one more column beside which h is 1, or as two
// whose sum it is where products round their operands; and zeros up to a multiple of 16 bytes.
struct Operands {
  at::Tensor h, weight;

  Operands(const DeviceCall& call, const Inputs& inputs, at::ScalarType dtype);

  int64_t depth() const { return weight.size(1); }
};

}  // namespace bcos::dynamic_alignment::glue::cuda
