// Stands in for csrc/common/cuda/architectures.cu, whose code asks nvcc, and hands the candidate `graph` the
// stand-in for cuDNN in place of the one that torch has loaded: the module is linked with --wrap=dlopen.
#include "common/cuda/architectures.h"

#include <cstdlib>
#include <cstring>

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
