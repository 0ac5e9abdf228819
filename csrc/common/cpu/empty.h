// New memory for the kernels.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

namespace bcos::cpu {

// at::empty on the CPU, which does not ask torch's dispatcher what serves such a tensor.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::Tensor(at::detail::empty_cpu(sizes, options));
}

}  // namespace bcos::cpu
