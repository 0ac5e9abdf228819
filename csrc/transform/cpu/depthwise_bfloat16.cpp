#include "transform/cpu/depthwise_kernels.h"

namespace bcos::transform::cpu {

template void run(const DepthwiseForward<BFloat16, BFloat16>&, int64_t, int64_t);
template bool run(const DepthwiseBackward<BFloat16, BFloat16>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
