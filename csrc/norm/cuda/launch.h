// Launchers of the CUDA kernels of a norm, free of torch: each checks nothing but what CUDA reports, and
// returns it.
//
// For sm_80 and later; of shared memory a block takes up to 25600 bytes. cudaErrorInvalidValue: dtypes that
// params.h does not allow.
#pragma once

#include <cuda_runtime_api.h>

#include "norm/cuda/params.h"

namespace bcos::norm::cuda {

// Statistics over the batch, all values or groups.

// As many shares as keep so many multiprocessors busy; reads no splits.
int splits_of(const Shape& shape, Dtype dtype, int multiprocessors);

cudaError_t moments(const MomentsPass& p, cudaStream_t stream);
cudaError_t join_moments(const JoinMoments& p, cudaStream_t stream);
cudaError_t apply(const Apply& p, cudaStream_t stream);

cudaError_t sums(const SumsPass& p, cudaStream_t stream);
cudaError_t set_sums(const SetSums& p, cudaStream_t stream);
cudaError_t channel_sums(const ChannelSums& p, cudaStream_t stream);
cudaError_t input_gradient(const GradientPass& p, cudaStream_t stream);
// Writes map in place of dx: of_grad, of_x, mean and offset of every channel, where all images share a set.
cudaError_t gradient_map(const GradientPass& p, cudaStream_t stream);

// Statistics at positions.

cudaError_t positions_fwd(const PositionsFwd& p, cudaStream_t stream);
cudaError_t positions_bwd(const PositionsBwd& p, cudaStream_t stream);
int positions_shares(const PositionsBwd& p);  // of the partial sums; reads the sizes and dtypes alone

}  // namespace bcos::norm::cuda
