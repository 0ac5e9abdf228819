// Which GPUs the kernels were compiled for.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

namespace bcos::cuda {

// Such as 800 for sm_80 or compute_80, ascending.
std::vector<int> architectures();

// Whether there is code that the current device runs.
cudaError_t usable();

}  // namespace bcos::cuda
