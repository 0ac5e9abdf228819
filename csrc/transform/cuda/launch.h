// Launchers of the CUDA kernels, free of torch: each checks nothing but what CUDA reports, and returns it.
//
// For sm_80 and later. Of shared memory a block takes up to 70144 bytes, and of depthwise layers 264 for each
// tap. cudaErrorInvalidValue: dtypes or a max_out that params.h does not allow.
// The templates are compiled for A = float and double.
#pragma once

#include <cuda_runtime_api.h>

#include "transform/cuda/params.h"

namespace bcos::transform::cuda {

template <typename A>
cudaError_t weight_norm_fwd(const WeightNormFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t weight_norm_bwd(const WeightNormBwd<A>& p, cudaStream_t stream);

template <typename A>
cudaError_t patch_norm_squares(const PatchNormSquares<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t patch_norm_fwd(const PatchNormFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t patch_norm_bwd(const PatchNormBwd<A>& p, cudaStream_t stream);

template <typename A>
cudaError_t both_norms(const BothNorms<A>& p, cudaStream_t stream);
template <typename A>
bool fits_both_norms(const BothNorms<A>& p);  // else a row is too long for it; reads the window alone

template <typename A>
cudaError_t scale_fwd(const ScaleFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t scale_bwd(const ScaleBwd<A>& p, cudaStream_t stream);
template <typename A>
int scale_bwd_blocks(const ScaleBwd<A>& p);  // entries of db; reads the sizes and dtypes alone
template <typename A>
cudaError_t scale_second(const ScaleSecond<A>& p, cudaStream_t stream);

cudaError_t implicit_gemm_fwd(const ImplicitGemmFwd& p, cudaStream_t stream);
cudaError_t implicit_gemm_dgrad(const ImplicitGemmDgrad& p, cudaStream_t stream);
cudaError_t implicit_gemm_wgrad(const ImplicitGemmWgrad& p, cudaStream_t stream);

cudaError_t depthwise_fwd(const DepthwiseFwd& p, cudaStream_t stream);
cudaError_t depthwise_bwd(const DepthwiseBwd& p, cudaStream_t stream);
cudaError_t depthwise_dgrad(const DepthwiseDgrad& p, cudaStream_t stream);
cudaError_t depthwise_wgrad(const DepthwiseWgrad& p, cudaStream_t stream);

}  // namespace bcos::transform::cuda
