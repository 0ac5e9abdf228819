// Launchers of the CUDA kernels, free of torch: each checks nothing but what CUDA reports, and returns it.
//
// For sm_80 and later. Of shared memory a block takes up to 70144 bytes, and of depthwise layers 264 for each
// tap. cudaErrorInvalidValue: dtypes or a max_out that params.h does not allow.
#pragma once

#include <cuda_runtime_api.h>

#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

cudaError_t weight_norm_fwd(const WeightNormFwd& p, cudaStream_t stream);
cudaError_t weight_norm_bwd(const WeightNormBwd& p, cudaStream_t stream);

cudaError_t patch_norm_squares(const PatchNormSquares& p, cudaStream_t stream);
cudaError_t patch_norm_fwd(const PatchNormFwd& p, cudaStream_t stream);
cudaError_t patch_norm_bwd(const PatchNormBwd& p, cudaStream_t stream);

cudaError_t scale_fwd(const ScaleFwd& p, cudaStream_t stream);
cudaError_t scale_bwd(const ScaleBwd& p, cudaStream_t stream);
int scale_bwd_blocks(const ScaleBwd& p);  // entries of db; reads the sizes and dtypes alone
cudaError_t scale_second(const ScaleSecond& p, cudaStream_t stream);

cudaError_t implicit_gemm_fwd(const ImplicitGemmFwd& p, cudaStream_t stream);
cudaError_t implicit_gemm_dgrad(const ImplicitGemmDgrad& p, cudaStream_t stream);
cudaError_t implicit_gemm_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream);

cudaError_t depthwise_fwd(const DepthwiseFwd& p, cudaStream_t stream);
cudaError_t depthwise_bwd(const DepthwiseBwd& p, cudaStream_t stream);
cudaError_t depthwise_dgrad(const DepthwiseDgrad& p, cudaStream_t stream);
cudaError_t depthwise_wgrad(const DepthwiseWgrad& p, cudaStream_t stream);

}  // namespace bcos::transform::cuda
