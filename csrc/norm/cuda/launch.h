// Launchers of the CUDA kernels of a norm, free of torch: each checks nothing but what CUDA reports, and
// returns it.
//
// For sm_80 and later; of shared memory a block takes up to 25600 bytes. cudaErrorInvalidValue: dtypes that
// params.h does not allow. The templates are compiled for A = float and double.
#pragma once

#include <cuda_runtime_api.h>

#include "norm/cuda/params.h"

namespace bcos::norm::cuda {

// Statistics over the batch, all values or groups.

// As many shares as keep so many multiprocessors busy; reads no splits.
int splits_of(const Shape& shape, Dtype dtype, int multiprocessors);

template <typename A>
cudaError_t moments(const MomentsPass<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t join_moments(const JoinMoments<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t apply(const Apply<A>& p, cudaStream_t stream);

template <typename A>
cudaError_t sums(const SumsPass<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t set_sums(const SetSums<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t channel_sums(const ChannelSums<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t input_gradient(const GradientPass<A>& p, cudaStream_t stream);
// Writes map in place of dx: of_grad, of_x, mean and offset of every channel, where all images share a set.
template <typename A>
cudaError_t gradient_map(const GradientPass<A>& p, cudaStream_t stream);

// Statistics at positions.

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream);
template <typename A>
int positions_shares(const PositionsBwd<A>& p);  // of the partial sums; reads the sizes and dtypes alone

}  // namespace bcos::norm::cuda
