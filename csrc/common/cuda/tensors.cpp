#include "common/cuda/tensors.h"

#include <ATen/ops/empty.h>

#include <limits>

namespace bcos::cuda {
namespace {

constexpr int64_t kAlignment = 16;  // bytes of the kernels' widest access

}  // namespace

Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kHalf:
      return Dtype::Float16;
    case at::kBFloat16:
      return Dtype::BFloat16;
    case at::kFloat:
      return Dtype::Float32;
    default:
      TORCH_CHECK(false, "the CUDA kernels have no dtype ", t.scalar_type(),
                  ", allowed: float, half and bfloat16");
  }
}

at::Tensor aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(data(t)) % kAlignment == 0 ? t : t.clone();
}

at::Tensor floats(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
}

int narrow(const char* name, int64_t size) {
  TORCH_CHECK_VALUE(size <= std::numeric_limits<int>::max(), name, " is ", size, ", allowed: below 2^31");
  return int(size);
}

}  // namespace bcos::cuda
