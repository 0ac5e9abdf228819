// How the glue starts a kernel: all that a stand-in for the CUDA runtime needs to replace.
#pragma once

#include "common/cuda/device.h"

namespace bcos::cuda {

template <typename Params>
cudaError_t start(cudaError_t (*kernel)(const Params&, cudaStream_t), const Params& params) {
  return kernel(params, stream());
}

}  // namespace bcos::cuda
