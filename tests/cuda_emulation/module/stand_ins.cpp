// Stands in for csrc/common/cuda/architectures.cu, whose code asks nvcc. And hands the candidate `graph` the
// stand-in for cuDNN in place of the one that torch's CUDA builds have loaded under the same name: what has
// this file is linked with --wrap=dlopen.
#include <cstdlib>
#include <cstring>

#include "common/cuda/architectures.h"

namespace bcos::cuda {

std::vector<int> architectures() {
  return {900};
}

cudaError_t usable() {
  return cudaSuccess;
}

}  // namespace bcos::cuda

extern "C" void* __real_dlopen(const char* name, int flags);
extern "C" void* __wrap_dlopen(const char* name, int flags) {
  const char* stand_in = std::getenv("BCOS_TEST_CUDNN");
  const bool asked = stand_in != nullptr && name != nullptr && std::strcmp(name, "libcudnn.so.9") == 0;
  return __real_dlopen(asked ? stand_in : name, flags);
}
