// Launchers of norms at positions of planes; those of launch.h call them.
#pragma once

#include "common/cuda/planes.cuh"
#include "norm/cuda/reduce.cuh"

namespace bcos::norm::cuda {

// Threads, a power of two, that share out so many vectors; at most `most`.
inline int lanes_of_vectors(int64_t vectors, int most) {
  int lanes = 1;
  while (lanes < most && lanes < vectors) lanes *= 2;
  return lanes;
}

namespace planes {

template <typename A>
cudaError_t positions_fwd(const PositionsFwd<A>& p, cudaStream_t stream);
template <typename A>
cudaError_t positions_bwd(const PositionsBwd<A>& p, cudaStream_t stream);
template <typename A>
int positions_shares(const PositionsBwd<A>& p);

}  // namespace planes

}  // namespace bcos::norm::cuda
