// What the glue asks of CUDA through torch: all that another executor of the kernels needs to replace.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace bcos::cuda {

inline constexpr c10::DeviceType kDevice = c10::kCUDA;

// Makes the device of `t` the current one, on whose current stream everything then runs.
struct OnDeviceOf {
  c10::cuda::CUDAGuard guard;
  explicit OnDeviceOf(const at::Tensor& t) : guard(t.device()) {}
};

inline cudaStream_t stream() {
  return c10::cuda::getCurrentCUDAStream();
}

// Whether a CUDA graph is being recorded from that stream.
inline bool is_capturing() {
  cudaStreamCaptureStatus status;
  C10_CUDA_CHECK(cudaStreamIsCapturing(stream(), &status));
  return status != cudaStreamCaptureStatusNone;
}

inline int device_index() {
  return c10::cuda::current_device();
}

inline int multiprocessors() {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return count;
}

// The error of the call that just returned `code`, or of one before that nobody looked at.
inline cudaError_t error_of(cudaError_t code) {
  const cudaError_t last = cudaGetLastError();
  return code == cudaSuccess ? last : code;
}

inline const char* describe(cudaError_t code) {
  return cudaGetErrorString(code);
}

}  // namespace bcos::cuda
