// The submodule bcos_kernels._C.cuda on the emulator, as a module of its own.
#include "host/cuda/bindings.h"

namespace bcos::host::gpu {

std::vector<int> architectures() {
  return {};
}

cudaError_t usable() {
  return cudaSuccess;
}

}  // namespace bcos::host::gpu

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  bcos::host::gpu::bind(m);
}
