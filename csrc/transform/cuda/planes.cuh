// Launchers of the kernels of NCHW tensors; those of launch.h call them where `plane` is not 0.
#pragma once

#include "common/cuda/planes.cuh"
#include "transform/cuda/formula.cuh"
#include "transform/cuda/window.cuh"

namespace bcos::transform::cuda::planes {

using namespace bcos::cuda::planes;

template <typename A>
cudaError_t patch_norm_squares(const PatchNormSquares<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t patch_norm_bwd(const PatchNormBwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t scale_fwd(const ScaleFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t scale_bwd(const ScaleBwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t scale_second(const ScaleSecond<A>& p, cudaStream_t stream);

}  // namespace bcos::transform::cuda::planes
