#include "transform/cpu/depthwise_kernels.h"

namespace bcos::transform::cpu {

template void run(const DepthwiseForward<float, float>&, int64_t, int64_t);
template bool run(const DepthwiseBackward<float, float>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
