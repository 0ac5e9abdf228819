#include "common/cuda/architectures.h"

namespace bcos::cuda {
namespace {

__global__ void probe() {}

}  // namespace

std::vector<int> architectures() {
  return {__CUDA_ARCH_LIST__};
}

cudaError_t usable() {
  cudaFuncAttributes unused;
  const cudaError_t error = cudaFuncGetAttributes(&unused, probe);
  cudaGetLastError();  // an answer, not a failure: the next launch must not find it
  return error;
}

}  // namespace bcos::cuda
