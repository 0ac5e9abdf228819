#include "common/cuda/tensors.h"

#include <ATen/ops/empty.h>

#include <limits>

#include "common/dtype.h"

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
    case at::kDouble:
      return Dtype::Float64;
    default:
      TORCH_CHECK(false, "the CUDA kernels have no dtype ", t.scalar_type(),
                  ", allowed: double, float, half and bfloat16");
  }
}

at::Tensor aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(data(t)) % kAlignment == 0 ? t : t.clone();
}

at::Tensor new_sums(at::IntArrayRef shape, const at::Tensor& like) {
  const auto options = like.options().dtype(accumulate_type(like.scalar_type()));
  return at::empty(shape, options.memory_format(at::MemoryFormat::Contiguous));
}

int narrow(const char* name, int64_t size) {
  TORCH_CHECK_VALUE(size <= std::numeric_limits<int>::max(), name, " is ", size, ", allowed: below 2^31");
  return int(size);
}

}  // namespace bcos::cuda
