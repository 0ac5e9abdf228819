#include "transform/cpu/scale_kernels.h"

namespace bcos::transform::cpu {

template bool run(const ScaleForward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const ScaleBackward<BFloat16, BFloat16>&, int64_t, int64_t);
template double b_gradient(const ScaleBackward<BFloat16, BFloat16>&, int64_t, int64_t);
template void run(const AddScaled<BFloat16>&, int64_t, int64_t);

}  // namespace bcos::transform::cpu
