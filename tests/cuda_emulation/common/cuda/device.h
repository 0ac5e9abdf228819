// Stands in for csrc/common/cuda/device.h: tensors of the CPU, whose kernels the emulator runs.
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_runtime_api.h>

namespace bcos::cuda {

inline constexpr c10::DeviceType kDevice = c10::kCPU;

struct OnDeviceOf {
  explicit OnDeviceOf(const at::Tensor&) {}
};

inline cudaStream_t stream() {
  return nullptr;
}

// Set by tests: whether a CUDA graph is being recorded.
inline bool capturing = false;

inline bool is_capturing() {
  return capturing;
}

inline int device_index() {
  return 0;
}

inline int multiprocessors() {
  return 1;
}

inline cudaError_t error_of(cudaError_t code) {
  return code;
}

inline const char* describe(cudaError_t) {
  return "an error of the emulator";
}

}  // namespace bcos::cuda
