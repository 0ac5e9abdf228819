// Stands in for csrc/common/cuda/start.h: the emulator runs the kernel, and again when a CUDA graph is
// replayed.
#pragma once

#include "common/cuda/device.h"
#include "runtime.h"

namespace bcos::cuda {

template <typename Params>
cudaError_t start(cudaError_t (*kernel)(const Params&, cudaStream_t), const Params& params) {
  if (runtime::idle()) return cudaSuccess;
  const std::lock_guard lock(runtime::computing());
  const cudaStream_t where = stream();
  if (runtime::is_captured(where)) runtime::record(where, [=] { kernel(params, where); });
  return kernel(params, where);
}

}  // namespace bcos::cuda
