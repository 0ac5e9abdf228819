// Launchers of the CUDA kernels of dynamic alignment units, free of torch: each checks nothing but what CUDA
// reports, and returns it.
//
// For sm_80 and later; of shared memory a block takes up to 97 KiB. cudaErrorInvalidValue: a dtype that is
// none of dtype.h.
// The templates are compiled for A = float and double.
//
// w is formed in tiles of pixels x columns, in registers, and never lies in memory but for the gradients of
// training, which need it transposed: there dw of some pixels does, from which two products form the
// gradients of h and of the weight. That serves all three norms alike. It moves 12 bytes of every dynamic
// weight, in place of the Gram matrices by which the squashing and the 2-norm could do without.
#pragma once

#include <cuda_runtime_api.h>

#include "dynamic_alignment/cuda/params.h"

namespace bcos::dynamic_alignment::cuda {

template <typename A>
cudaError_t forward(const Forward<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t upstream(const Upstream<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t patch_gradient(const PatchGradient<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t weight_gradient(const WeightGradient<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t product(const Product<A>& p, cudaStream_t stream);

// As many parts of a product as keep so many multiprocessors busy, and more where the sums are long: sums of
// sums round less. Reads the sizes alone.
template <typename A>
int splits_of(const Product<A>& p, int multiprocessors);

}  // namespace bcos::dynamic_alignment::cuda
