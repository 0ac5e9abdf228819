// Launchers of norms at positions of planes; those of launch.h call them.
#pragma once

#include "common/cuda/planes.cuh"
#include "norm/cuda/reduce.cuh"

namespace bcos::norm::cuda {

namespace planes {

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream);
template <typename A>
int positions_shares(const PositionsBwd<A>& p);

}  // namespace planes
}  // namespace bcos::norm::cuda
