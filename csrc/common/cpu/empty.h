// Tensors for the kernels, with torch's dispatcher asked only where it must be.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

namespace bcos::cpu {

// at::empty on the CPU, which does not ask torch's dispatcher what serves such a tensor.
inline at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::Tensor(at::detail::empty_cpu(sizes, options));
}

// t in this dtype. Where it has it, torch's dispatcher is not asked.
inline at::Tensor in_type(const at::Tensor& t, at::ScalarType dtype) {
  return t.scalar_type() == dtype ? t : t.to(dtype);
}

}  // namespace bcos::cpu
